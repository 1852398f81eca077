//! The fixed parts of an image: header and trailer, their limits and their hashes.
//!
//! Everything here is byte layout; the order in which a reader believes it is in `reader`. All numbers are
//! little-endian. `docs/image-format.md` says the same in prose and tables; keep both equal.

use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use cpr_types::{Error, ErrorKind, Result};
use rustix::rand::{GetRandomFlags, getrandom};

/// Major and minor version of the format that is written. Readers accept every minor version of their major one.
pub const FORMAT_VERSION: (u16, u16) = (1, 0);

/// Unit of page data and alignment in an image, bytes.
pub const PAGE: u64 = 4096;

/// Page data are hashed in pieces of this many bytes.
pub const HASH_CHUNK: u64 = 1 << 20;

/// Most bytes of page data in an image: 8 TiB.
pub const MAX_DATA: u64 = 8 << 40;

/// Most bytes of encoded metadata in an image.
pub const MAX_MANIFEST: u64 = 256 << 20;

pub(crate) const HEADER_MAGIC: [u8; 8] = *b"\x89CPR\r\n\x1a\n";
pub(crate) const TRAILER_MAGIC: [u8; 8] = *b"\x89CPREND\n";
pub(crate) const HEADER_LENGTH: usize = 4096;
/// A header of a later major version may be longer; up to here its hash can still be checked.
const MAX_HEADER_LENGTH: usize = 65536;
pub(crate) const TRAILER_LENGTH: usize = 208;
pub(crate) const HASH_LENGTH: usize = 32;

/// Required feature: chunks of page data are compressed with zstd where that makes them shorter.
pub(crate) const ZSTD: &str = "zstd";
/// Required feature: page data may be in other images.
pub(crate) const INCREMENTAL: &str = "incremental";
/// Required features this program knows.
const KNOWN_FEATURES: [&str; 2] = [ZSTD, INCREMENTAL];
/// Length of an entry of the table of an image with [`ZSTD`]: hash, stored length, length.
pub(crate) const PACKED_ENTRY: usize = HASH_LENGTH + 8;

/// Extents refer to page data of ancestor `k`, counted from 1, at positions from `k` times this on.
pub const ANCESTOR_STRIDE: u64 = 1 << 44;

/// What makes an image distinct from all others.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageId(pub [u8; 16]);

impl ImageId {
    /// A new one, made of random bytes.
    ///
    /// # Errors
    /// When the kernel has no random bytes to give.
    pub fn random() -> Result<Self> {
        let mut bytes = [0; 16];
        let mut filled = 0;
        while filled < bytes.len() {
            let read = getrandom(&mut bytes[filled..], GetRandomFlags::empty());
            match read {
                Ok(count) => filled += count,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    return Err(Error::new(ErrorKind::Io, "get random bytes for an image identifier")
                        .with_source(std::io::Error::from(error)));
                }
            }
        }
        Ok(ImageId(bytes))
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ImageId({self})")
    }
}

impl FromStr for ImageId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::new(
                ErrorKind::Usage,
                format!("{text:?} is no image identifier of 32 hexadecimal digits"),
            )
        };
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let mut bytes = [0; 16];
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
        }
        Ok(ImageId(bytes))
    }
}

/// What the first page of an image says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Format version, major and minor.
    pub version: (u16, u16),
    /// Page size in bytes.
    pub page_size: u32,
    /// Flag bits; none is defined in format 1.0, and a reader ignores those it does not know.
    pub flags: u32,
    /// Identifier of the image.
    pub id: ImageId,
    /// When the image was begun, nanoseconds since the epoch.
    pub created_ns: u64,
    /// Machine architecture, for example `x86_64`.
    pub architecture: String,
    /// Names of what a reader must know to read the image at all.
    pub required_features: Vec<String>,
}

/// What the first bytes of a file say about how to go on.
pub(crate) enum Start {
    /// It has a header of this length.
    Header(usize),
    Empty,
    /// Cut off within the header.
    Short,
    NotAnImage,
    /// It has our mark, but no possible header length.
    Altered,
}

/// Looks at the first bytes of a file of `length` bytes; `bytes` are its first twelve, or all it has.
pub(crate) fn start(bytes: &[u8], length: u64) -> Start {
    let common = bytes.len().min(HEADER_MAGIC.len());
    if length == 0 || bytes.is_empty() {
        return Start::Empty;
    }
    if bytes[..common] != HEADER_MAGIC[..common] {
        return Start::NotAnImage;
    }
    let Some(header_length) = bytes.get(8..12) else {
        return Start::Short;
    };
    let header_length = u32_at(header_length, 0) as usize;
    if !(HEADER_LENGTH..=MAX_HEADER_LENGTH).contains(&header_length) || !header_length.is_multiple_of(HEADER_LENGTH) {
        return Start::Altered;
    }
    if length < header_length as u64 {
        return Start::Short;
    }
    Start::Header(header_length)
}

impl Header {
    /// Whether a reader must know this feature.
    pub(crate) fn requires(&self, feature: &str) -> bool {
        self.required_features.iter().any(|required| required == feature)
    }

    pub(crate) fn new(architecture: &str, required_features: Vec<String>) -> Result<Self> {
        let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Header {
            version: FORMAT_VERSION,
            page_size: PAGE as u32,
            flags: 0,
            id: ImageId::random()?,
            created_ns: u64::try_from(created.as_nanos()).unwrap_or(u64::MAX),
            architecture: architecture.to_string(),
            required_features,
        })
    }

    pub(crate) fn encode(&self) -> Result<[u8; HEADER_LENGTH]> {
        let too_long =
            |what: &str| Error::new(ErrorKind::Internal, format!("{what} does not fit into an image header"));
        let mut bytes = [0; HEADER_LENGTH];
        bytes[..8].copy_from_slice(&HEADER_MAGIC);
        bytes[8..12].copy_from_slice(&(HEADER_LENGTH as u32).to_le_bytes());
        bytes[12..14].copy_from_slice(&self.version.0.to_le_bytes());
        bytes[14..16].copy_from_slice(&self.version.1.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.page_size.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.flags.to_le_bytes());
        bytes[24..40].copy_from_slice(&self.id.0);
        bytes[40..48].copy_from_slice(&self.created_ns.to_le_bytes());
        let name = self.architecture.as_bytes();
        if name.is_empty() || name.len() > 16 || !name.iter().all(u8::is_ascii_graphic) {
            return Err(too_long("the architecture name"));
        }
        bytes[48..48 + name.len()].copy_from_slice(name);
        let count = u16::try_from(self.required_features.len()).map_err(|_| too_long("the list of features"))?;
        bytes[64..66].copy_from_slice(&count.to_le_bytes());
        let mut at = 66;
        for feature in &self.required_features {
            let length = u8::try_from(feature.len()).map_err(|_| too_long("a feature name"))?;
            let end = at + 1 + feature.len();
            if end > HEADER_LENGTH - HASH_LENGTH {
                return Err(too_long("the list of features"));
            }
            bytes[at] = length;
            bytes[at + 1..end].copy_from_slice(feature.as_bytes());
            at = end;
        }
        let hash = blake3::hash(&bytes[..HEADER_LENGTH - HASH_LENGTH]);
        bytes[HEADER_LENGTH - HASH_LENGTH..].copy_from_slice(hash.as_bytes());
        Ok(bytes)
    }

    /// Checks and decodes a header whose length [`start`] found.
    pub(crate) fn decode(bytes: &[u8], name: &str) -> Result<Self> {
        let altered = || damaged(name, format!("its header (bytes 0 to {}) is altered", bytes.len() - 1));
        let (body, hash) = bytes.split_at(bytes.len() - HASH_LENGTH);
        if blake3::hash(body).as_bytes() != hash {
            return Err(altered());
        }
        let version = (u16_at(body, 12), u16_at(body, 14));
        if version.0 != FORMAT_VERSION.0 {
            let error = Error::new(
                ErrorKind::Incompatible,
                format!(
                    "image {name} has format version {}.{}; this program reads version {}",
                    version.0, version.1, FORMAT_VERSION.0
                ),
            );
            return Err(if version.0 > FORMAT_VERSION.0 {
                error.with_hint("use a newer version of cpr")
            } else {
                error
            });
        }
        let malformed = |what: &str| damaged(name, format!("its header {what}"));
        if bytes.len() != HEADER_LENGTH {
            return Err(malformed("has a length that format 1 does not have"));
        }
        let mut required_features = Vec::new();
        let mut at = 66;
        for _ in 0..u16_at(body, 64) {
            let length = usize::from(*body.get(at).ok_or_else(|| malformed("has a malformed feature list"))?);
            let feature = body
                .get(at + 1..at + 1 + length)
                .ok_or_else(|| malformed("has a malformed feature list"))?;
            required_features.push(printable(feature).ok_or_else(|| malformed("has a malformed feature name"))?);
            at += 1 + length;
        }
        let unknown: Vec<String> = required_features
            .iter()
            .filter(|feature| !KNOWN_FEATURES.contains(&feature.as_str()))
            .map(|feature| format!("`{feature}`"))
            .collect();
        if !unknown.is_empty() {
            return Err(Error::new(
                ErrorKind::Incompatible,
                format!(
                    "image {name} needs what this program does not have: {}",
                    unknown.join(", ")
                ),
            )
            .with_hint("use a newer version of cpr"));
        }
        let page_size = u32_at(body, 16);
        if u64::from(page_size) != PAGE {
            return Err(Error::new(
                ErrorKind::Incompatible,
                format!("image {name} has pages of {page_size} bytes; this program reads pages of {PAGE}"),
            ));
        }
        let architecture = &body[48..64];
        let end = architecture.iter().position(|b| *b == 0).unwrap_or(architecture.len());
        if architecture[end..].iter().any(|b| *b != 0) {
            return Err(malformed("has a malformed architecture name"));
        }
        let mut id = [0; 16];
        id.copy_from_slice(&body[24..40]);
        Ok(Header {
            version,
            page_size,
            flags: u32_at(body, 20),
            id: ImageId(id),
            created_ns: u64_at(body, 40),
            architecture: printable(&architecture[..end])
                .ok_or_else(|| malformed("has a malformed architecture name"))?,
            required_features,
        })
    }
}

/// Where the parts of an image lie, with the hashes of those that are read at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trailer {
    pub data_offset: u64,
    pub data_length: u64,
    pub table_offset: u64,
    pub table_length: u64,
    pub manifest_offset: u64,
    pub manifest_length: u64,
    pub total_length: u64,
    pub header_hash: [u8; HASH_LENGTH],
    pub table_hash: [u8; HASH_LENGTH],
    pub manifest_hash: [u8; HASH_LENGTH],
}

impl Trailer {
    /// The parts of an image with so much data and metadata, one after the other; hashes are left zero.
    pub(crate) fn for_lengths(data_length: u64, manifest_length: u64) -> Option<Self> {
        let table_length = data_length.div_ceil(HASH_CHUNK).checked_mul(HASH_LENGTH as u64)?;
        Self::for_parts(data_length, table_length, manifest_length)
    }

    /// The same with a table whose length does not follow from that of the data.
    pub(crate) fn for_parts(data_length: u64, table_length: u64, manifest_length: u64) -> Option<Self> {
        let data_offset = HEADER_LENGTH as u64;
        let table_offset = data_offset.checked_add(data_length)?;
        let manifest_offset = table_offset.checked_add(table_length)?;
        let trailer_offset = manifest_offset.checked_add(manifest_length)?;
        Some(Trailer {
            data_offset,
            data_length,
            table_offset,
            table_length,
            manifest_offset,
            manifest_length,
            total_length: trailer_offset.checked_add(TRAILER_LENGTH as u64)?,
            header_hash: [0; HASH_LENGTH],
            table_hash: [0; HASH_LENGTH],
            manifest_hash: [0; HASH_LENGTH],
        })
    }

    pub(crate) fn encode(&self) -> [u8; TRAILER_LENGTH] {
        let mut bytes = [0; TRAILER_LENGTH];
        bytes[..8].copy_from_slice(&TRAILER_MAGIC);
        bytes[8..12].copy_from_slice(&(TRAILER_LENGTH as u32).to_le_bytes());
        // Bytes 12 to 15 are zero.
        let numbers = [
            self.data_offset,
            self.data_length,
            self.table_offset,
            self.table_length,
            self.manifest_offset,
            self.manifest_length,
            self.total_length,
            HASH_CHUNK,
        ];
        for (field, number) in bytes[16..80].chunks_mut(8).zip(numbers) {
            field.copy_from_slice(&number.to_le_bytes());
        }
        bytes[80..112].copy_from_slice(&self.header_hash);
        bytes[112..144].copy_from_slice(&self.table_hash);
        bytes[144..176].copy_from_slice(&self.manifest_hash);
        let hash = blake3::hash(&bytes[..176]);
        bytes[176..].copy_from_slice(hash.as_bytes());
        bytes
    }

    /// Checks and decodes the last bytes of a file of `length` bytes; `packed` says that it has the feature [`ZSTD`].
    pub(crate) fn decode(bytes: &[u8; TRAILER_LENGTH], length: u64, packed: bool, name: &str) -> Result<Self> {
        if bytes[..8] != TRAILER_MAGIC {
            return Err(truncated(name, "its end mark is missing"));
        }
        let offset = length - TRAILER_LENGTH as u64;
        if blake3::hash(&bytes[..176]).as_bytes() != &bytes[176..] {
            return Err(damaged(
                name,
                format!("its trailer ({TRAILER_LENGTH} bytes at offset {offset}) is altered"),
            ));
        }
        let trailer = Trailer {
            data_offset: u64_at(bytes, 16),
            data_length: u64_at(bytes, 24),
            table_offset: u64_at(bytes, 32),
            table_length: u64_at(bytes, 40),
            manifest_offset: u64_at(bytes, 48),
            manifest_length: u64_at(bytes, 56),
            total_length: u64_at(bytes, 64),
            header_hash: hash_at(bytes, 80),
            table_hash: hash_at(bytes, 112),
            manifest_hash: hash_at(bytes, 144),
        };
        let wrong = |what: String| Err(damaged(name, format!("its trailer {what}")));
        if u32_at(bytes, 8) as usize != TRAILER_LENGTH || u64_at(bytes, 72) != HASH_CHUNK {
            return wrong("has a layout that format 1 does not have".to_string());
        }
        if trailer.total_length != length {
            return wrong(format!(
                "says the file has {} bytes; it has {length}",
                trailer.total_length
            ));
        }
        if trailer.data_length > MAX_DATA || !(packed || trailer.data_length.is_multiple_of(PAGE)) {
            return wrong(format!(
                "gives an impossible amount of page data: {} bytes",
                trailer.data_length
            ));
        }
        if trailer.manifest_length > MAX_MANIFEST {
            return wrong(format!(
                "gives an impossible amount of metadata: {} bytes",
                trailer.manifest_length
            ));
        }
        // Format 1 leaves no choice where the parts lie, so that no byte is outside all of them.
        let expected = if packed {
            let entries = trailer.table_length / PACKED_ENTRY as u64;
            if !trailer.table_length.is_multiple_of(PACKED_ENTRY as u64) || entries > MAX_DATA / HASH_CHUNK {
                return wrong(format!("gives an impossible table of {} bytes", trailer.table_length));
            }
            Trailer::for_parts(trailer.data_length, trailer.table_length, trailer.manifest_length)
        } else {
            Trailer::for_lengths(trailer.data_length, trailer.manifest_length)
        };
        let expected = expected.map(|expected| Trailer {
            header_hash: trailer.header_hash,
            table_hash: trailer.table_hash,
            manifest_hash: trailer.manifest_hash,
            ..expected
        });
        if expected.as_ref() != Some(&trailer) {
            return wrong("gives positions that do not fit together".to_string());
        }
        Ok(trailer)
    }
}

pub(crate) fn damaged(name: &str, what: impl fmt::Display) -> Error {
    Error::new(ErrorKind::Damaged, format!("image {name} is damaged: {what}"))
}

pub(crate) fn truncated(name: &str, what: &str) -> Error {
    Error::new(ErrorKind::Damaged, format!("image {name} is truncated: {what}"))
        .with_hint("copy it again, or use another image")
}

fn printable(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    (!text.is_empty() && !text.chars().any(char::is_control)).then(|| text.to_string())
}

// The callers' slices are of fixed length and longer than these positions.

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

fn hash_at(bytes: &[u8], at: usize) -> [u8; HASH_LENGTH] {
    let mut hash = [0; HASH_LENGTH];
    hash.copy_from_slice(&bytes[at..at + HASH_LENGTH]);
    hash
}
