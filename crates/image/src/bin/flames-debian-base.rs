//! Makes the tar of a small Debian from this machine's own apt archives, once, and prints where it is.
//!
//! `flames-debian-base FOLDER`: the tar is made in FOLDER, or found there. `cargo xtask demo` uses it; the tar is for
//! `flames image import`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "to print is what this program is for")]

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [folder] = arguments.as_slice() else {
        eprintln!("usage: flames-debian-base FOLDER");
        return ExitCode::from(2);
    };
    match flames_image::debian::base_tar(Path::new(folder), &mut |words| eprintln!("{words}")) {
        Ok(tar) => {
            println!("{}", tar.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("flames-debian-base: {error}");
            ExitCode::FAILURE
        }
    }
}
