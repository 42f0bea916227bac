//! A cluster on one machine, and the judges of its packet path.

pub mod end;
pub mod oracle;
pub mod output;
pub mod probe;
