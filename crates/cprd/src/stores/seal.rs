//! Encryption of images in stores: whoever can read a store, or changes what is in it, learns nothing and is found out.
//!
//! ```text
//! gridcpr sealed 1     16 bytes
//! which key            8 bytes
//! salt                 32 bytes, random
//! pieces               64 KiB each, the last one shorter, with a tag of 16 bytes
//! ```
//!
//! Every image has a key of its own, made of the grid's, the salt and the number of its checkpoint. Pieces are sealed
//! with AES-256-GCM; their number, and whether a piece is the last, is in the nonce, so that none can be moved or left
//! out.

use std::io::{self, Read};
use std::process::{Command, Stdio};

use cpr_types::{Context, Error, ErrorKind, Result};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::config::EncryptionConfig;

const MAGIC: &[u8; 16] = b"gridcpr sealed 1";
const ID: usize = 8;
const SALT: usize = 32;
const HEAD: usize = MAGIC.len() + ID + SALT;
const PIECE: usize = 64 << 10;
const TAG: usize = 16;

/// A key of the grid.
struct Key {
    id: [u8; ID],
    bytes: [u8; 32],
}

/// The keys of the grid: the first seals, all open.
pub struct Keys(Vec<Key>);

fn key(line: &str) -> Option<Key> {
    let mut bytes = [0; 32];
    if line.len() != 64 || !line.is_ascii() {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(line.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    let mut id = [0; ID];
    id.copy_from_slice(&blake3::derive_key("gridcpr store, name of a key", &bytes)[..ID]);
    Some(Key { id, bytes })
}

/// What a command prints.
fn printed(words: &[String]) -> Result<String> {
    let what = || format!("run {}", words.join(" "));
    let (program, arguments) = words
        .split_first()
        .ok_or_else(|| Error::new(ErrorKind::Usage, "there is no command"))?;
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context(what)?;
    if !output.status.success() {
        return Err(Error::new(
            ErrorKind::Io,
            format!("{}: it ended with {}", what(), output.status),
        ));
    }
    String::from_utf8(output.stdout).map_err(|_| Error::new(ErrorKind::Usage, format!("{}: it prints no text", what())))
}

impl Keys {
    /// The keys that a configuration names; none where it names none.
    pub fn read(config: &EncryptionConfig) -> Result<Option<Keys>> {
        let text = match (&config.key_file, &config.key_variable, config.key_command.as_slice()) {
            (Some(path), ..) => std::fs::read_to_string(path).context(|| format!("read {}", path.display()))?,
            (None, Some(name), _) => std::env::var(name).map_err(|error| {
                Error::new(ErrorKind::Usage, format!("read key from variable {name}")).with_source(error)
            })?,
            (None, None, []) => return Ok(None),
            (None, None, words) => printed(words)?,
        };
        Keys::parse(&text).map(Some)
    }

    /// A key on each line, in hexadecimal digits.
    fn parse(text: &str) -> Result<Keys> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let keys: Option<Vec<Key>> = lines.map(key).collect();
        // What is wrong is not repeated: it may be a key all the same.
        keys.filter(|keys| !keys.is_empty()).map(Keys).ok_or_else(|| {
            Error::new(ErrorKind::Usage, "the keys of encryption are not understood")
                .with_hint("each is a line of 64 hexadecimal digits, as `openssl rand -hex 32` makes it")
        })
    }

    /// What an image of `bytes` bytes looks like in a store.
    pub fn seal<'a>(&self, image: &'a mut dyn Read, id: i64, bytes: u64) -> Result<Sealing<'a>> {
        let key = self
            .0
            .first()
            .ok_or_else(|| Error::new(ErrorKind::Internal, "there is no key"))?;
        let mut salt = [0; SALT];
        let mut filled = 0;
        while filled < SALT {
            filled += rustix::rand::getrandom(&mut salt[filled..], rustix::rand::GetRandomFlags::empty())
                .map_err(io::Error::from)
                .context(|| "get random bytes")?;
        }
        let head = [MAGIC.as_slice(), &key.id, &salt].concat();
        Ok(Sealing {
            image,
            key: image_key(key, &salt, id)?,
            number: 0,
            left: bytes,
            ended: false,
            out: io::Cursor::new(head),
        })
    }

    /// Whether what begins like this is sealed, and if so, the key that opens it.
    fn opener(&self, head: &[u8], id: i64) -> Result<Option<LessSafeKey>> {
        let Some(rest) = head.strip_prefix(MAGIC).filter(|rest| rest.len() == ID + SALT) else {
            return Ok(None);
        };
        let (name, salt) = rest.split_at(ID);
        let key = self.0.iter().find(|key| key.id == name).ok_or_else(|| {
            Error::new(
                ErrorKind::Denied,
                format!("image {id} is encrypted with a key that is not known here"),
            )
            .with_hint("keys that are no longer used stay below the new one as long as there are images of them")
        })?;
        image_key(key, salt, id).map(Some)
    }

    /// An image from its byte `offset` on; `read` gives what is in the store from a byte on. What is not sealed was put
    /// there before there were keys.
    pub fn open<R: Read + 'static>(
        &self,
        id: i64,
        offset: u64,
        read: impl Fn(u64) -> Result<R>,
    ) -> Result<Box<dyn Read>> {
        let mut sealed = read(0)?;
        let mut head = Vec::new();
        (&mut sealed)
            .take(HEAD as u64)
            .read_to_end(&mut head)
            .context(|| "read an image")?;
        let Some(key) = self.opener(&head, id)? else {
            return Ok(Box::new(read(offset)?));
        };
        let number = offset / PIECE as u64;
        if number > 0 {
            sealed = read(HEAD as u64 + number * (PIECE + TAG) as u64)?;
        }
        let mut opening = Opening {
            sealed,
            key,
            number,
            ahead: Vec::new(),
            ended: false,
            out: io::Cursor::new(Vec::new()),
        };
        io::copy(&mut (&mut opening).take(offset % PIECE as u64), &mut io::sink()).context(|| "read an image")?;
        Ok(Box::new(opening))
    }
}

/// Bytes that an image of `bytes` bytes takes in a store.
pub fn sealed_length(bytes: u64) -> u64 {
    HEAD as u64 + bytes + TAG as u64 * bytes.div_ceil(PIECE as u64).max(1)
}

fn image_key(key: &Key, salt: &[u8], id: i64) -> Result<LessSafeKey> {
    let mut hasher = blake3::Hasher::new_keyed(&key.bytes);
    hasher
        .update(b"gridcpr store, key of an image")
        .update(salt)
        .update(&id.to_le_bytes());
    let unbound = UnboundKey::new(&AES_256_GCM, hasher.finalize().as_bytes());
    let unbound = unbound.map_err(|_| Error::new(ErrorKind::Internal, "a key has a wrong length"))?;
    Ok(LessSafeKey::new(unbound))
}

fn nonce(number: u64, is_last: bool) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[0] = u8::from(is_last);
    nonce[NONCE_LEN - 8..].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// Gives an image sealed.
pub struct Sealing<'a> {
    image: &'a mut dyn Read,
    key: LessSafeKey,
    number: u64,
    /// Bytes of the image that are not sealed so far.
    left: u64,
    ended: bool,
    out: io::Cursor<Vec<u8>>,
}

impl Read for Sealing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let had = self.out.read(buffer)?;
        if had > 0 || self.ended || buffer.is_empty() {
            return Ok(had);
        }
        let length = usize::try_from(self.left).unwrap_or(PIECE).min(PIECE);
        let mut piece = vec![0; length];
        self.image.read_exact(&mut piece)?;
        self.left -= length as u64;
        self.ended = self.left == 0;
        self.key
            .seal_in_place_append_tag(nonce(self.number, self.ended), Aad::empty(), &mut piece)
            .map_err(|_| io::Error::other("a piece could not be sealed"))?;
        self.number += 1;
        self.out = io::Cursor::new(piece);
        self.out.read(buffer)
    }
}

/// Gives what was sealed.
struct Opening<R> {
    sealed: R,
    key: LessSafeKey,
    number: u64,
    /// Read, and not opened so far: a byte more than a piece, which says that it is not the last.
    ahead: Vec<u8>,
    ended: bool,
    out: io::Cursor<Vec<u8>>,
}

impl<R: Read> Read for Opening<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let had = self.out.read(buffer)?;
            if had > 0 || self.ended || buffer.is_empty() {
                return Ok(had);
            }
            let whole = PIECE + TAG;
            let wanted = (whole + 1 - self.ahead.len()) as u64;
            (&mut self.sealed).take(wanted).read_to_end(&mut self.ahead)?;
            self.ended = self.ahead.len() <= whole;
            let rest = self.ahead.split_off(whole.min(self.ahead.len()));
            let mut piece = std::mem::replace(&mut self.ahead, rest);
            let opened = self
                .key
                .open_in_place(nonce(self.number, self.ended), Aad::empty(), &mut piece);
            let length = opened.map(|plain| plain.len()).map_err(|_| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    "what is in the store is not what was put there",
                )
            })?;
            piece.truncate(length);
            self.number += 1;
            self.out = io::Cursor::new(piece);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ONE: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    fn image(length: usize) -> Vec<u8> {
        (0..length).map(|n| (n * 7 + n / 251) as u8).collect()
    }

    fn sealed(keys: &Keys, image: &[u8], id: i64) -> Vec<u8> {
        let mut sealed = Vec::new();
        let mut reader = image;
        let mut sealing = keys.seal(&mut reader, id, image.len() as u64).unwrap();
        sealing.read_to_end(&mut sealed).unwrap();
        assert_eq!(sealed.len() as u64, sealed_length(image.len() as u64));
        sealed
    }

    fn opened(keys: &Keys, sealed: &[u8], id: i64, offset: u64) -> Result<Vec<u8>> {
        let sealed = sealed.to_vec();
        let read = |from: u64| Ok(io::Cursor::new(sealed[(from as usize).min(sealed.len())..].to_vec()));
        let mut image = Vec::new();
        keys.open(id, offset, read)?
            .read_to_end(&mut image)
            .context(|| "read")?;
        Ok(image)
    }

    #[test]
    fn what_is_sealed_is_opened_from_every_place() {
        let keys = Keys::parse(ONE).unwrap();
        for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 3 * PIECE + 77] {
            let image = image(length);
            let sealed = sealed(&keys, &image, 5);
            for offset in [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 9] {
                if offset < length || offset == 0 {
                    let found = opened(&keys, &sealed, 5, offset as u64).unwrap();
                    assert!(found == image[offset..], "{length} from {offset}");
                }
            }
        }
        assert_eq!(
            opened(&keys, b"plain", 5, 2).unwrap(),
            b"ain",
            "from before there were keys"
        );
    }

    #[test]
    fn every_change_is_found_out() {
        let keys = Keys::parse(ONE).unwrap();
        let image = image(2 * PIECE + 100);
        let good = sealed(&keys, &image, 5);
        assert_ne!(good, sealed(&keys, &image, 5), "no two are alike");
        let mut bad = Vec::new();
        for at in [
            MAGIC.len() + ID,
            HEAD - 1,
            HEAD,
            HEAD + PIECE,
            HEAD + PIECE + TAG,
            good.len() - 1,
        ] {
            let mut changed = good.clone();
            changed[at] ^= 1;
            bad.push(changed);
        }
        // Cut off inside of a piece, and between two; and two pieces in each other's place.
        bad.push(good[..good.len() - 1].to_vec());
        bad.push(good[..HEAD + 2 * (PIECE + TAG)].to_vec());
        bad.push(good[..HEAD].to_vec());
        let (first, second) = (HEAD..HEAD + PIECE + TAG, HEAD + PIECE + TAG..HEAD + 2 * (PIECE + TAG));
        bad.push([&good[..HEAD], &good[second.clone()], &good[first], &good[second.end..]].concat());
        for (number, changed) in bad.iter().enumerate() {
            let error = opened(&keys, changed, 5, 0).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Damaged, "change {number}");
        }
        assert!(opened(&keys, &good, 6, 0).is_err(), "in the place of another image");
    }

    #[test]
    fn a_new_key_seals_and_the_old_one_still_opens() {
        let old = Keys::parse(ONE).unwrap();
        let two = "f".repeat(64);
        let both = Keys::parse(&format!("{two}\n\n{ONE}\n")).unwrap();
        let before = sealed(&old, b"image", 1);
        assert_eq!(opened(&both, &before, 1, 0).unwrap(), b"image");
        let after = sealed(&both, b"image", 1);
        assert_eq!(opened(&both, &after, 1, 0).unwrap(), b"image");
        assert_eq!(opened(&old, &after, 1, 0).unwrap_err().kind(), ErrorKind::Denied);
        for bad in ["", "\n", "12", &"g".repeat(64), &format!("{ONE}\nx")] {
            assert!(Keys::parse(bad).is_err());
        }
    }
}
