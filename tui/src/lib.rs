//! The terminal UI of Retrovisor. It will stand on `retrovisor_debug::Session`; nothing of it is built yet.
