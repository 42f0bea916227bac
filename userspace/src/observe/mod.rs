//! Views of what the stages report, and of what policies say.

pub mod nearest;
pub mod walk;
