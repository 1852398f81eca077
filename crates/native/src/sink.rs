//! Where page data go to and come from: an image, or memory in tests.

use std::io::Write;

use cpr_image::{Image, ImageWriter};
use cpr_types::Result;

/// Size of a page in the image. Page data are multiples of it.
pub const PAGE_SIZE: usize = 4096;

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
