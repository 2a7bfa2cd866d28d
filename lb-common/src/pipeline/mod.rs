//! The packet logic.
