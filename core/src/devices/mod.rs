//! Devices: each file a pure register model (registers in, registers and line levels out). Wiring is `machine::board`.
