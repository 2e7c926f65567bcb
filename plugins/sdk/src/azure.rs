//! Azure, for every plugin: who this machine is there, and what that opens.
//!
//! What is not here: the vault's own store and key, which have their credentials from the configuration (the vault crate).

pub mod token;
