//! Fetches Debian's packaged kernel by this machine's own apt, once, and prints where it and its modules are.
//!
//! `flames-debian-kernel FOLDER`: it is kept in FOLDER, or found there. Two lines are printed: the kernel's file, and the folder of
//! the modules that a guest needs with it (what `flames up --kernel … --kernel-modules …` takes).

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "to print is what this program is for")]

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [folder] = arguments.as_slice() else {
        eprintln!("usage: flames-debian-kernel FOLDER");
        return ExitCode::from(2);
    };
    match flames_image::debian::kernel(Path::new(folder), &mut |words| eprintln!("{words}")) {
        Ok(package) => {
            println!("{}", package.kernel.display());
            println!("{}", package.modules_folder().display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("flames-debian-kernel: {error}");
            ExitCode::FAILURE
        }
    }
}
