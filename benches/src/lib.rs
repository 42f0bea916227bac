//! The comparison of dataplanes: what is compared, how it is measured, how it is told.

pub mod changes;
pub mod figure;
pub mod grid;
pub mod machine;
pub mod masquerade;
pub mod matrix;
pub mod measure;
pub mod micro;
pub mod path;
pub mod policies;
pub mod programs;
pub mod report;
pub mod results;
pub mod services;
pub mod targets;
