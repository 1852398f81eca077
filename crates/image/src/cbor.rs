//! Metadata to CBOR and back.
//!
//! Before metadata are decoded, [`scan`] walks through the bytes without allocating: it checks that they are the plain
//! subset of CBOR that the format allows, and adds up what decoding them would take in memory, so that a small file
//! cannot ask for a large amount.

use cpr_types::{Error, ErrorKind, Result};

use crate::format::MAX_MANIFEST;
use crate::model::Manifest;

/// Most memory that decoded metadata may take, by the estimate below.
const MAX_DECODED: u64 = 512 << 20;
/// Deepest nesting of arrays and maps. The schema needs nine.
const MAX_DEPTH: usize = 32;
/// Longest key of a map, bytes.
const MAX_KEY: u64 = 255;

// Memory of one decoded element, not less than its type takes; a test compares.
const PROCESS_WEIGHT: u64 = 1024;
const MAP_WEIGHT: u64 = 256;
const ITEM_WEIGHT: u64 = 24;

/// Encodes metadata.
///
/// # Errors
/// [`ErrorKind::Unsupported`] when they exceed what an image may hold.
pub(crate) fn encode(manifest: &Manifest) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    ciborium::into_writer(manifest, &mut bytes)
        .map_err(|error| Error::new(ErrorKind::Internal, "encode the metadata of an image").with_source(error))?;
    if bytes.len() as u64 > MAX_MANIFEST {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "the metadata of the job take {} bytes, what waits in its pipes, sockets and terminals among them; an \
                 image holds {MAX_MANIFEST}",
                bytes.len()
            ),
        )
        .with_hint("try again when the job has read what waits there"));
    }
    scan(&bytes).map_err(|what| {
        Error::new(
            ErrorKind::Unsupported,
            format!("the job is too large: its metadata {what}"),
        )
    })?;
    Ok(bytes)
}

/// Decodes metadata that have passed their hash.
///
/// # Errors
/// [`ErrorKind::Incompatible`] for an object of a kind this program does not know, [`ErrorKind::Damaged`] otherwise.
pub(crate) fn decode(bytes: &[u8]) -> Result<Manifest> {
    scan(bytes).map_err(|what| Error::new(ErrorKind::Damaged, format!("the metadata {what}")))?;
    let mut rest = bytes;
    let manifest = ciborium::from_reader(&mut rest).map_err(refusal)?;
    if !rest.is_empty() {
        // A kind known to us, but with other contents, puts the decoder out of step.
        return Err(Error::new(
            ErrorKind::Damaged,
            format!("the metadata go on for {} bytes after their end", rest.len()),
        ));
    }
    Ok(manifest)
}

fn refusal(error: ciborium::de::Error<std::io::Error>) -> Error {
    use ciborium::de::Error as Cbor;
    match error {
        // serde gives no other way to tell than the words its `unknown_variant` makes.
        Cbor::Semantic(_, text) if text.starts_with("unknown variant") => {
            let known_part = text.split(", expected").next().unwrap_or("unknown variant").to_string();
            Error::new(
                ErrorKind::Incompatible,
                format!("the image holds an object that this program does not know: {known_part}"),
            )
            .with_hint("use a newer version of cpr")
        }
        Cbor::Semantic(_, text) => Error::new(ErrorKind::Damaged, format!("the metadata are malformed: {text}")),
        Cbor::Syntax(at) => Error::new(ErrorKind::Damaged, format!("the metadata are malformed at byte {at}")),
        Cbor::Io(error) => Error::new(ErrorKind::Damaged, "the metadata end too early").with_source(error),
        Cbor::RecursionLimitExceeded => Error::new(ErrorKind::Damaged, "the metadata are nested too deeply"),
    }
}

/// An array or map that is being walked through.
#[derive(Clone, Copy)]
struct Frame {
    /// Items left; for a map keys and values count separately.
    left: u64,
    map: bool,
    /// Weight of the maps that are elements of this array.
    weight: u64,
}

/// Checks that `bytes` are exactly one well-formed item of the allowed subset, and no larger when decoded than allowed.
fn scan(bytes: &[u8]) -> Result<(), String> {
    let mut frames = [Frame {
        left: 0,
        map: false,
        weight: MAP_WEIGHT,
    }; MAX_DEPTH];
    let mut depth = 0;
    let mut at = 0;
    let mut decoded = 0;
    // Weight for the elements of the array that is the value of the key just read.
    let mut next_weight = MAP_WEIGHT;
    loop {
        let start = at;
        let is_key = depth > 0 && frames[depth - 1].map && frames[depth - 1].left % 2 == 0;
        let (major, value) = head(bytes, &mut at).ok_or_else(|| format!("are malformed at byte {start}"))?;
        let mut opened = None;
        match major {
            0 | 1 | 7 => decoded += ITEM_WEIGHT,
            2 | 3 => {
                let end = usize::try_from(value).ok().and_then(|value| at.checked_add(value));
                let text = end.and_then(|end| bytes.get(at..end));
                let text = text.ok_or_else(|| format!("end within the string at byte {start}"))?;
                at += text.len();
                decoded += ITEM_WEIGHT + value;
                if major == 3 && std::str::from_utf8(text).is_err() {
                    return Err(format!("hold text that is not UTF-8 at byte {start}"));
                }
                if is_key {
                    next_weight = match text {
                        b"processes" | b"threads" => PROCESS_WEIGHT,
                        _ => MAP_WEIGHT,
                    };
                }
            }
            4 => {
                decoded += ITEM_WEIGHT;
                opened = Some(Frame {
                    left: value,
                    map: false,
                    weight: next_weight,
                });
            }
            5 => {
                decoded += if depth > 0 {
                    frames[depth - 1].weight
                } else {
                    PROCESS_WEIGHT
                };
                let left = value
                    .checked_mul(2)
                    .ok_or_else(|| format!("are malformed at byte {start}"))?;
                opened = Some(Frame {
                    left,
                    map: true,
                    weight: MAP_WEIGHT,
                });
            }
            _ => return Err(format!("use a form of CBOR that images do not use, at byte {start}")),
        }
        if is_key && (major != 3 || value > MAX_KEY) {
            return Err(format!("have a key that is no short text at byte {start}"));
        }
        if !is_key {
            next_weight = MAP_WEIGHT;
        }
        if decoded > MAX_DECODED {
            return Err(format!(
                "describe too many objects (more than {} MiB)",
                MAX_DECODED >> 20
            ));
        }
        if depth > 0 {
            frames[depth - 1].left -= 1;
        }
        if let Some(frame) = opened {
            if depth == MAX_DEPTH {
                return Err(format!("are nested too deeply at byte {start}"));
            }
            frames[depth] = frame;
            depth += 1;
        }
        while depth > 0 && frames[depth - 1].left == 0 {
            depth -= 1;
        }
        if depth == 0 {
            break;
        }
    }
    if at != bytes.len() {
        return Err(format!("go on for {} bytes after their end", bytes.len() - at));
    }
    Ok(())
}

/// Reads the head of an item: its major type and value. Indefinite lengths, and simple values other than false, true
/// and null, are not allowed; tags are left to the caller.
fn head(bytes: &[u8], at: &mut usize) -> Option<(u8, u64)> {
    let first = *bytes.get(*at)?;
    *at += 1;
    let major = first >> 5;
    let value = match first & 31 {
        small @ 0..=23 => u64::from(small),
        size @ 24..=27 => {
            let length = 1 << (size - 24);
            let field = bytes.get(*at..at.checked_add(length)?)?;
            *at += length;
            field.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
        }
        _ => return None,
    };
    if major == 7 && !(0xf4..=0xf6).contains(&first) {
        return None;
    }
    Some((major, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::*;

    #[test]
    fn weights_are_not_less_than_the_types() {
        let sizes = [
            size_of::<Descriptor>(),
            size_of::<AddressSpace>(),
            size_of::<Mapping>(),
            size_of::<MappedFile>(),
            size_of::<OpenFile>(),
            size_of::<SavedFile>(),
            size_of::<Pipe>(),
            size_of::<UnixSocket>(),
            size_of::<InetSocket>(),
            size_of::<PacketSocket>(),
            size_of::<IoUring>(),
            size_of::<FanotifyMark>(),
            size_of::<TcpConnection>(),
            size_of::<Datagram>(),
            size_of::<Terminal>(),
            size_of::<PosixTimer>(),
            size_of::<SocketMessage>(),
            size_of::<EpollTarget>(),
            size_of::<InotifyWatch>(),
            size_of::<SignalAction>(),
        ];
        assert!(sizes.iter().all(|size| *size as u64 <= MAP_WEIGHT), "{sizes:?}");
        assert!(
            size_of::<Process>() as u64 <= PROCESS_WEIGHT,
            "{}",
            size_of::<Process>()
        );
        assert!(size_of::<Thread>() as u64 <= PROCESS_WEIGHT, "{}", size_of::<Thread>());
        // There is one of it.
        assert!(
            size_of::<Manifest>() as u64 <= 2 * PROCESS_WEIGHT,
            "{}",
            size_of::<Manifest>()
        );
        assert!(size_of::<Extent>() as u64 <= 4 * ITEM_WEIGHT && size_of::<String>() as u64 <= ITEM_WEIGHT);
    }

    #[test]
    fn scan_refuses_what_images_do_not_use() {
        let refused: &[&[u8]] = &[
            b"",
            &[0x80, 0x00],
            &[0x9f, 0xff],
            &[0xbf, 0xff],
            &[0xc0, 0x00],
            &[0xf7],
            &[0xf9, 0, 0],
            &[0xa1, 0x00, 0x00],
            &[0xa1, 0x61, b'a'],
            &[0x62, b'a'],
            &[0x61, 0xff],
            &[0x5b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            &[0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            &[0xbb, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            &[0x81; 100],
            &[0x1c],
            &[0xf4, 0xf4],
        ];
        for bytes in refused {
            assert!(scan(bytes).is_err(), "{bytes:02x?}");
        }
        for bytes in [
            &[0xa0_u8] as &[u8],
            &[0x80],
            &[0xa1, 0x61, b'a', 0xf6],
            &[0x82, 0xa0, 0x20],
        ] {
            assert_eq!(scan(bytes), Ok(()), "{bytes:02x?}");
        }
    }

    #[test]
    fn a_million_empty_processes_are_refused_before_decoding() {
        let mut bytes = vec![0xa1, 0x69];
        bytes.extend_from_slice(b"processes");
        bytes.extend_from_slice(&[0x9a, 0, 0x10, 0, 0]);
        bytes.resize(bytes.len() + 0x10_0000, 0xa0);
        let error = decode(&bytes).expect_err("decoded");
        assert_eq!(error.kind(), ErrorKind::Damaged);
        assert!(error.message().contains("too many objects"), "{error}");
    }
}
