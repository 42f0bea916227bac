//! The dataplanes that are compared.

pub mod chains;
pub mod emulator;
