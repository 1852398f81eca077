//! `cpr man`

use cpr_types::Result;

use crate::args::Man;
use crate::manual;

pub fn man(args: &Man) -> Result<u8> {
    manual::write_pages(&args.dir)?;
    Ok(0)
}
