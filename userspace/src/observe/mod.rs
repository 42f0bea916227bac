//! Views of what the stages report.
