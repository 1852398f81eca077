//! Parts made by somebody who computes hashes correctly, for tests and for fuzzing.

/// First and last bytes of a part.
const MAGIC: [u8; 8] = *b"GridAPP\x01";
const HEADER: usize = 4096;
const TRAILER: usize = 64;

/// The metadata of a sound part.
pub fn metadata(part: &[u8]) -> &[u8] {
    let trailer = &part[part.len() - TRAILER..];
    let at = u64::from_le_bytes(trailer[..8].try_into().expect("eight bytes")) as usize;
    &part[at..part.len() - TRAILER]
}

/// A sound part with other metadata, and a trailer that fits them.
#[allow(dead_code)]
pub fn with_metadata(part: &[u8], other: &[u8]) -> Vec<u8> {
    let at = part.len() - TRAILER - metadata(part).len();
    seal(&part[..at], other)
}

/// Any bytes as metadata of a part without data.
#[allow(dead_code)]
pub fn bare(metadata: &[u8]) -> Vec<u8> {
    let mut header = vec![0; HEADER];
    header[..8].copy_from_slice(&MAGIC);
    header[8] = 1;
    seal(&header, metadata)
}

fn seal(before: &[u8], metadata: &[u8]) -> Vec<u8> {
    let mut part = [before, metadata].concat();
    part.extend_from_slice(&(before.len() as u64).to_le_bytes());
    part.extend_from_slice(&(metadata.len() as u64).to_le_bytes());
    part.extend_from_slice(blake3::hash(metadata).as_bytes());
    let length = (part.len() + 16) as u64;
    part.extend_from_slice(&length.to_le_bytes());
    part.extend_from_slice(&MAGIC);
    part
}
