//! Views of what the stages report.

pub mod walk;
