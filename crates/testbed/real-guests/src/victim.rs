//! A driver in a process of its own, to be killed.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

/// A process of this test program that is a driver.
#[derive(Debug)]
pub struct Victim {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Victim {
    /// Starts this program again with the variable, by which its `main` knows what it is.
    pub fn spawn(variable: &str, what: impl AsRef<OsStr>) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .env(variable, what)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        Self { child, said }
    }

    /// Waits for its next line, which must be this one.
    pub fn says(&mut self, words: &str) {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), words);
    }

    /// Kills it, and waits for its end.
    pub fn kill(self) {
        drop(self);
    }
}

/// What a victim does: the work, and then nothing until it is killed.
pub fn until_killed(work: impl Future<Output = ()>) -> ! {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        work.await;
        std::future::pending::<()>().await;
    });
    unreachable!()
}
