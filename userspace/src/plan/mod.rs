//! Pure: what each table of a node must hold, from the cluster alone. No clock, no kernel, no runtime.

pub mod rows;

pub use rows::*;
