//! Data movement: moves and conversions (`mov`), exchanges and compare-exchanges (`exchange`), and instructions
//! that only hint or order (`hint`).

pub mod exchange;
pub mod hint;
pub mod mov;

use super::Row;
use super::traits::join;

pub const ROWS: &[Row] = &join::<{ mov::ROWS.len() + exchange::ROWS.len() + hint::ROWS.len() }>(&[
    mov::ROWS,
    exchange::ROWS,
    hint::ROWS,
]);
