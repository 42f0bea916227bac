//! The dataplanes that are compared.
