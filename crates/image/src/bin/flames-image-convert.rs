//! The conversion's child process alone, for tests and for programs that are not the `flames` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    flames_image::child_main()
}
