//! The comparison of dataplanes: what is compared, how it is measured, how it is told.

pub mod affinity;
pub mod changes;
pub mod charged;
mod cluster;
pub mod figure;
pub mod grid;
pub mod journal;
pub mod machine;
pub mod masquerade;
pub mod matrix;
pub mod measure;
pub mod memory;
pub mod micro;
pub mod noise;
pub mod path;
pub mod policies;
pub mod programs;
pub mod report;
pub mod results;
pub mod rules;
pub mod sample;
pub mod services;
pub mod stages;
pub mod targets;
