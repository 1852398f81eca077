//! Several arrays in one file, as `numpy.load()` reads them: a ZIP archive without compression, with the fields for
//! long files throughout (APPNOTE.TXT 6.3.10, sections 4.3 and 4.5.3).

use std::io::{Seek, SeekFrom, Write};

use cpr_types::{Context, Error, ErrorKind, Result};

/// Version that is needed to extract: 4.5, for long files.
const NEEDED: u16 = 45;
/// Says that the number is in the extra field.
const LONG: u32 = u32::MAX;
/// 1980-01-01, the first day there is: the same arrays make the same file.
const DATE: u16 = 0x21;

struct Entry {
    name: String,
    crc: u32,
    bytes: u64,
    offset: u64,
}

/// Takes a file's bytes, piece by piece.
pub type Sink<'a> = dyn FnMut(&[u8]) -> Result<()> + 'a;

/// An archive that is being written.
pub struct Archive<W> {
    file: W,
    entries: Vec<Entry>,
}

impl<W: Write + Seek> Archive<W> {
    /// To be written to this file, which is empty.
    pub fn new(file: W) -> Self {
        Archive {
            file,
            entries: Vec::new(),
        }
    }

    /// Adds a file, which `contents` writes piece by piece.
    ///
    /// # Errors
    /// The file cannot be written; what `contents` says.
    pub fn add(&mut self, name: &str, contents: impl FnOnce(&mut Sink<'_>) -> Result<()>) -> Result<()> {
        let what = || format!("write {name} into the archive");
        let offset = self.file.stream_position().context(what)?;
        let mut entry = Entry {
            name: name.to_owned(),
            crc: 0,
            bytes: 0,
            offset,
        };
        self.file.write_all(&local(&entry)?).context(what)?;
        let mut crc = Crc::new();
        let file = &mut self.file;
        contents(&mut |piece| {
            crc.add(piece);
            entry.bytes += piece.len() as u64;
            file.write_all(piece).context(what)
        })?;
        entry.crc = crc.value();
        // Now that length and checksum are known.
        self.file.seek(SeekFrom::Start(offset)).context(what)?;
        self.file.write_all(&local(&entry)?).context(what)?;
        self.file.seek(SeekFrom::End(0)).context(what)?;
        self.entries.push(entry);
        Ok(())
    }

    /// Writes the table of contents, and gives the file back.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn finish(mut self) -> Result<W> {
        let what = || "write the archive's table of contents";
        let start = self.file.stream_position().context(what)?;
        let mut table = Vec::new();
        for entry in &self.entries {
            table.extend_from_slice(b"PK\x01\x02");
            put(&mut table, &[NEEDED, NEEDED, 0, 0, 0, DATE]);
            put32(&mut table, &[entry.crc, LONG, LONG]);
            put(&mut table, &[length(&entry.name)?, 28, 0, 0, 0]);
            put32(&mut table, &[0o600 << 16, LONG]);
            table.extend_from_slice(entry.name.as_bytes());
            put(&mut table, &[1, 24]);
            put64(&mut table, &[entry.bytes, entry.bytes, entry.offset]);
        }
        let (size, count) = (table.len() as u64, self.entries.len() as u64);
        table.extend_from_slice(b"PK\x06\x06");
        put64(&mut table, &[44]);
        put(&mut table, &[NEEDED, NEEDED]);
        put32(&mut table, &[0, 0]);
        put64(&mut table, &[count, count, size, start]);
        table.extend_from_slice(b"PK\x06\x07");
        put32(&mut table, &[0]);
        put64(&mut table, &[start + size]);
        put32(&mut table, &[1]);
        table.extend_from_slice(b"PK\x05\x06");
        put(&mut table, &[0, 0, u16::MAX, u16::MAX]);
        put32(&mut table, &[LONG, LONG]);
        put(&mut table, &[0]);
        self.file.write_all(&table).context(what)?;
        Ok(self.file)
    }
}

/// What stands before a file's bytes.
fn local(entry: &Entry) -> Result<Vec<u8>> {
    let mut header = b"PK\x03\x04".to_vec();
    put(&mut header, &[NEEDED, 0, 0, 0, DATE]);
    put32(&mut header, &[entry.crc, LONG, LONG]);
    put(&mut header, &[length(&entry.name)?, 20]);
    header.extend_from_slice(entry.name.as_bytes());
    put(&mut header, &[1, 16]);
    put64(&mut header, &[entry.bytes, entry.bytes]);
    Ok(header)
}

fn length(name: &str) -> Result<u16> {
    let long = || Error::new(ErrorKind::Usage, "a name is too long for an archive");
    u16::try_from(name.len()).map_err(|_| long())
}

fn put(to: &mut Vec<u8>, numbers: &[u16]) {
    to.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
}

fn put32(to: &mut Vec<u8>, numbers: &[u32]) {
    to.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
}

fn put64(to: &mut Vec<u8>, numbers: &[u64]) {
    to.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
}

/// CRC-32 as in ISO 3309: polynomial 0xedb88320, bits reversed.
struct Crc {
    table: [u32; 256],
    state: u32,
}

impl Crc {
    fn new() -> Self {
        let mut table = [0u32; 256];
        for (index, slot) in table.iter_mut().enumerate() {
            *slot = (0..8).fold(index as u32, |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)));
        }
        Crc { table, state: u32::MAX }
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.state = (self.state >> 8) ^ self.table[usize::from(self.state as u8 ^ byte)];
        }
    }

    fn value(&self) -> u32 {
        !self.state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_everybody() {
        let mut crc = Crc::new();
        crc.add(b"1234");
        crc.add(b"56789");
        assert_eq!(crc.value(), 0xcbf4_3926);
    }
}
