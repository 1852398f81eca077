//! File systems of layers (overlay): directories of the job's own mount namespace, on top of each other.

use cpr_image::model::{ByteString, LAYER_OPTIONS, MountOption, Mounted};
use cpr_kernel::proc::Mount;

use super::tree::{Base, name};
use crate::paths::below;

/// What is mounted, by the options that /proc/PID/mountinfo shows. The directories must be where a restart finds them.
///
/// # Errors
/// Why it cannot be mounted again.
pub fn of(mount: &Mount, base: &Base) -> Result<Mounted, String> {
    let refuse = |why: &str| format!("{}: {why}", name(mount));
    let locate = |path: &str| {
        // A comma or colon in a name is shown as a backslash and something.
        if !path.starts_with('/') || path.contains('\\') {
            return Err(refuse(&format!("its directory {path} cannot be told")));
        }
        let found = base.locate(path.as_bytes()).map(ByteString);
        found.ok_or_else(|| refuse(&format!("its directory {path} is not in the job's own mount namespace")))
    };
    let text = String::from_utf8(mount.super_options.clone()).map_err(|_| refuse("its options are no text"))?;
    let (mut lower, mut data, mut options) = (Vec::new(), Vec::new(), Vec::<MountOption>::new());
    let (mut upper, mut work) = (None, None);
    // Without an upper directory nothing can be changed.
    let said = |option: &&str| !["", "rw"].contains(option) && (*option != "ro" || text.contains("upperdir="));
    for option in text.split(',').filter(said) {
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        let twice = match key {
            "lowerdir" => {
                let whole = !lower.is_empty();
                // Those after two colons are for data only.
                let (plain, rest) = value.split_once("::").unwrap_or((value, ""));
                lower = plain.split(':').map(locate).collect::<Result<_, _>>()?;
                let rest = rest.split("::").filter(|path| !path.is_empty());
                data = rest.map(locate).collect::<Result<_, _>>()?;
                whole
            }
            "lowerdir+" => {
                lower.push(locate(value)?);
                false
            }
            "datadir+" => {
                data.push(locate(value)?);
                false
            }
            "upperdir" => upper.replace(locate(value)?).is_some(),
            "workdir" => work.replace(locate(value)?).is_some(),
            _ => {
                let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
                if !LAYER_OPTIONS.contains(&key) || !value.bytes().all(plain) {
                    return Err(refuse(&format!("it is mounted with option {option}")));
                }
                let twice = options.iter().any(|(known, _)| known == key);
                options.push((key.to_owned(), value.to_owned()));
                twice
            }
        };
        if twice {
            return Err(refuse(&format!("option {key} is there twice")));
        }
    }
    if lower.is_empty() || upper.is_some() != work.is_some() {
        return Err(refuse("its directories are not told"));
    }
    Ok(Mounted::Layers {
        path: ByteString(below(&mount.root, b"/").unwrap_or_default().to_vec()),
        lower,
        data,
        upper: upper.zip(work),
        options,
    })
}
