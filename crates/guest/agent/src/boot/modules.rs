use std::fs::File;
use std::path::Path;

use rustix::io::Errno;

use super::BootResult;
use crate::console;

/// One path of a kernel module in each line, in the order in which they are loaded.
const LIST: &str = "/flames/modules.list";
// A kernel with more modules than this for its root and channel is not one we know.
const MAX_MODULES: usize = 256;

/// Loads the modules of the list; without a list there is nothing to load. A module that is there already is fine.
/// One that fails is told on the console: what really needs it fails with its own message.
pub(super) fn load_all() -> BootResult<()> {
    let Ok(list) = std::fs::read_to_string(LIST) else { return Ok(()) };
    let lines = list.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    for (count, path) in lines.enumerate() {
        if count >= MAX_MODULES {
            return Err(format!("{LIST} has more than {MAX_MODULES} modules"));
        }
        if let Err(error) = load(Path::new(path)) {
            console::line(&format!("module {path}: {error}"));
        }
    }
    Ok(())
}

fn load(path: &Path) -> std::io::Result<()> {
    let file = File::open(path)?;
    match rustix::system::finit_module(&file, c"", 0) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
