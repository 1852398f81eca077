//! The `.cpr` image: what a checkpoint consists of ([`model`]) and the file that carries it.
//!
//! This crate knows no kernel interface and no job; it turns a [`model::Manifest`] and page data into a file or stream
//! and back. The format is described in `docs/image-format.md`.
//!
//! - [`ImageWriter`] writes an image front to back into any [`std::io::Write`], so also into a pipe.
//! - [`PendingImage`] makes a finished file appear under its name at once, or not at all.
//! - [`Image`] opens one. Nothing of it is believed before the hash over it and the version have been checked, and
//!   nothing of the metadata before [`model::Manifest::validate`] has found them consistent. Page data are checked by
//!   [`Image::verify_data`].
//! - [`Bundle`] is the image of a job that another engine has saved.

mod bundle;
mod cbor;
pub mod edit;
mod format;
mod merge;
pub mod model;
mod packer;
mod pages;
mod pending;
mod reader;
mod validate;
mod writer;

pub use bundle::{Bundle, BundleFile, BundleRecord, BundleSummary, write_bundle};
pub use format::{ANCESTOR_STRIDE, FORMAT_VERSION, HASH_CHUNK, Header, ImageId, MAX_DATA, MAX_MANIFEST, PAGE};
pub use merge::merge;
pub use packer::Compression;
pub use pages::{PageHash, PageHasher, PageIndex};
pub use pending::PendingImage;
pub use reader::{Image, TakePiece};
pub use writer::{ChunkWriter, Hashing, ImageSummary, ImageWriter, WriteOptions};

/// BLAKE3 of `data`, the hash images use throughout.
pub fn hash(data: &[u8]) -> [u8; 32] {
    *blake3::hash(data).as_bytes()
}

/// BLAKE3 of everything `reader` gives.
///
/// # Errors
/// It cannot be read.
pub fn hash_reader(reader: impl std::io::Read) -> std::io::Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(reader)?;
    Ok(*hasher.finalize().as_bytes())
}
