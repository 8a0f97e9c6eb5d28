//! The user land of test guests: busybox, as an image.

use std::fs;
use std::path::Path;

use super::Installation;

/// The programs that scripts call by their own names; all others as `busybox NAME`.
const LINKED: [&str; 14] =
    ["sh", "cat", "echo", "sleep", "uname", "nc", "id", "stty", "tty", "wc", "sync", "kill", "free", "pwd"];

/// Imports it as the image `busybox`.
pub(crate) fn import_busybox(installation: &Installation) {
    let root = installation.folder.path().join("busybox");
    if !root.exists() {
        make_busybox(&root);
    }
    installation.run(&["image", "import", "busybox", root.to_str().unwrap()]).ok();
}

pub(crate) fn make_busybox(root: &Path) {
    for folder in ["bin", "etc", "tmp", "proc", "sys", "dev"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for name in LINKED {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\nguest:x:1000:1000::/tmp:/bin/sh\n").unwrap();
    fs::write(root.join("etc/os-release"), "NAME=\"the image's own\"\n").unwrap();
}
