//! `cpr mpi`

use std::path::Path;

use cpr_types::Result;

use crate::args::grid::Mpi;
use crate::mpi::{self, Units};

pub fn mpi(args: &Mpi) -> Result<u8> {
    let units = Units::from_environment()?;
    let directory = args.directory.as_deref().unwrap_or(Path::new("."));
    match args.launch {
        true => mpi::launch(&units, directory, &args.command),
        false => mpi::take_part(&units, directory, args.ranks, &args.command),
    }
}
