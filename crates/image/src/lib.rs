//! The `.cpr` image: what a checkpoint consists of ([`model`]) and the file that carries it.
//!
//! This crate knows no kernel interface and no job; it turns a [`model::Manifest`] and page data into a file or stream
//! and back. The format is described in `docs/image-format.md`.

pub mod model;
