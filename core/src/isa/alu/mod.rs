//! Binary and unary integer arithmetic: ADD to CMP, TEST, INC, DEC, NEG, NOT, ADCX, ADOX, and decimal adjustment.
//! Source: SDM vol. 2. `arith` holds the pure arithmetic that other families use too.

pub mod arith;
pub mod bcd;
pub mod binary;
pub mod unary;

use super::Row;
use super::traits::join;

pub const ROWS: &[Row] = &join::<{ binary::ROWS.len() + unary::ROWS.len() + bcd::ROWS.len() }>(&[
    binary::ROWS,
    unary::ROWS,
    bcd::ROWS,
]);
