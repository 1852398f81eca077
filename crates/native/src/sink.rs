//! Where page data go to and come from: an image, or memory in tests.

use std::io::Write;

use cpr_image::{Image, ImageWriter};
use cpr_types::Result;

/// Size of a page in the image. Page data are multiples of it.
pub const PAGE_SIZE: usize = 4096;

/// Size of the pieces in which page data are read and placed, bytes. A hash in an image is of as many: a piece that is
/// one by itself can be hashed and written apart from all others. It fits into a cache that a processor has for itself.
pub const PIECE: usize = cpr_image::HASH_CHUNK as usize;

/// Takes page data.
pub trait PageSink {
    /// Appends whole pages and gives their position in the image.
    ///
    /// # Errors
    /// The image cannot be written.
    fn append(&mut self, pages: &[u8]) -> Result<u64>;

    /// Sees to it that whole pages are in the image, each once if it has been there before. Tells `placed` of every run
    /// of them, in order: its length in bytes and its position in the image.
    ///
    /// # Errors
    /// The image cannot be written.
    fn place(&mut self, pages: &[u8], placed: &mut dyn FnMut(usize, u64)) -> Result<()> {
        let offset = self.append(pages)?;
        placed(pages.len(), offset);
        Ok(())
    }

    /// The same for a buffer that is given away and need not be copied; gives another one, with anything in it.
    ///
    /// # Errors
    /// The image cannot be written.
    fn place_buffer(&mut self, pages: Vec<u8>, placed: &mut dyn FnMut(usize, u64)) -> Result<Vec<u8>> {
        self.place(&pages, placed)?;
        Ok(pages)
    }

    /// How many bytes are to be placed before [`PageSink::place_pieces`] can be called, for a run of pages of which so
    /// many bytes are left; none where they are to be placed one after the other.
    fn ahead(&mut self, _left: u64) -> Option<u64> {
        None
    }

    /// Places pieces of [`PIECE`] bytes, several at a time: `read` reads the one of this number, and says whether it
    /// could. Gives the positions of the first ones, one at least. Where there is none it is left to the caller: the
    /// piece could not be read, or has pages of zeros or such as are in the image.
    ///
    /// # Errors
    /// The image cannot be written.
    fn place_pieces(&mut self, _count: usize, _read: &ReadPiece<'_>) -> Result<Vec<Option<u64>>> {
        Ok(vec![None])
    }
}

/// Reads the piece of this number into a buffer that is as large.
pub type ReadPiece<'a> = dyn Fn(usize, &mut [u8]) -> bool + Sync + 'a;

/// Part of a run of pages, of a piece's size at most.
#[derive(Debug, Clone, Copy)]
pub enum Part {
    /// A piece that is at this position in the image.
    Placed(u64),
    /// So many bytes, which have still to be placed.
    Left(u64),
}

/// Goes through a run of pages from `start` to `end`, in order. What can be placed several pieces at a time has been,
/// read by `read`, when `take` is told of it; else that has to see to it.
///
/// # Errors
/// Those of `take`, and the image cannot be written.
pub fn in_parts(
    (start, end): (u64, u64),
    sink: &mut dyn PageSink,
    read: &(dyn Fn(u64, &mut [u8]) -> bool + Sync),
    take: &mut dyn FnMut(u64, Part, &mut dyn PageSink) -> Result<()>,
) -> Result<()> {
    let mut at = start;
    while at < end {
        let left = end - at;
        let ahead = sink.ahead(left);
        if ahead == Some(0) && left >= PIECE as u64 {
            let count = (left / PIECE as u64) as usize;
            let read_piece = |number: usize, buffer: &mut [u8]| read(at + (number * PIECE) as u64, buffer);
            for place in sink.place_pieces(count, &read_piece)? {
                take(at, place.map_or(Part::Left(PIECE as u64), Part::Placed), sink)?;
                at += PIECE as u64;
            }
            continue;
        }
        let length = ahead.filter(|bytes| *bytes > 0).unwrap_or(u64::MAX);
        let length = length.min(left).min(PIECE as u64);
        take(at, Part::Left(length), sink)?;
        at += length;
    }
    Ok(())
}

/// Gives page data back.
pub trait PageSource {
    /// Fills `buffer` with what was appended at `offset`.
    ///
    /// # Errors
    /// The image cannot be read, or has no data there.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()>;
}

impl<W: Write> PageSink for ImageWriter<W> {
    fn append(&mut self, pages: &[u8]) -> Result<u64> {
        ImageWriter::append(self, pages)
    }
}

impl PageSource for Image {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.read_data(offset, buffer)
    }
}
