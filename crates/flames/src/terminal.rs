//! The terminal that a command is used on.

use std::io::{self, IsTerminal};
use std::sync::{Mutex, OnceLock, PoisonError};

use flames_wire::TerminalSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// How the terminal was, while it is in raw mode: for the ends of the process that run no destructors.
static SAVED: OnceLock<Mutex<Option<Termios>>> = OnceLock::new();

fn saved() -> &'static Mutex<Option<Termios>> {
    SAVED.get_or_init(Mutex::default)
}

/// The terminal of standard input in raw mode: each key goes to the guest as it is. Dropping it, a panic, or [`restore`] sets the
/// terminal back.
#[derive(Debug)]
pub(crate) struct RawMode(());

impl RawMode {
    /// Sets raw mode; none when standard input is no terminal.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        let input = io::stdin();
        if !input.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(&input)?;
        let mut raw = before.clone();
        raw.make_raw();
        *saved().lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            hook(panic);
        }));
        tcsetattr(&input, OptionalActions::Now, &raw)?;
        Ok(Some(Self(())))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Sets the terminal back to how it was before raw mode. Nothing when it is not in raw mode.
pub(crate) fn restore() {
    if let Some(before) = saved().lock().unwrap_or_else(PoisonError::into_inner).take() {
        // A terminal that hung up cannot be set back, and need not be.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &before);
    }
}

/// The size of the terminal that output goes to; none when it goes elsewhere.
pub(crate) fn size() -> Option<TerminalSize> {
    let size = tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stdin())).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some(TerminalSize { rows: size.ws_row, columns: size.ws_col })
}
