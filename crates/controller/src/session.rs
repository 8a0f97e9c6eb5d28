//! The present registration, as all who call the API share it.

use std::sync::Arc;

use flames_client::wire::host::HostSession;
use flames_error::ErrorKind;
use tokio::sync::watch;

/// Tells who serves the control plane beside the controller (a link to its guests) which registration is the present one.
#[derive(Debug, Clone)]
pub struct Sessions(SessionCell);

impl Sessions {
    /// The present registration, once there is one. Cancel-safe.
    pub async fn current(&self) -> HostSession {
        self.0.current().await
    }

    /// Returns once `session` is not the present registration any more. Cancel-safe.
    pub async fn ended(&self, session: &HostSession) {
        self.0.ended(session).await;
    }
}

/// The present registration, or none.
#[derive(Debug, Clone)]
pub(crate) struct SessionCell(Arc<watch::Sender<State>>);

#[derive(Debug, Clone, Copy, Default)]
struct State {
    session: Option<HostSession>,
    /// Why the last one ended.
    lost_by: Option<ErrorKind>,
}

impl SessionCell {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(State::default())))
    }

    /// For those outside.
    pub(crate) fn watched(&self) -> Sessions {
        Sessions(self.clone())
    }

    /// A registration succeeded.
    pub(crate) fn set(&self, session: HostSession) {
        self.0.send_replace(State { session: Some(session), lost_by: None });
    }

    /// The control plane does not take this registration any more. No change when there is a newer one.
    pub(crate) fn lost(&self, session: &HostSession, by: ErrorKind) {
        self.0.send_if_modified(|state| {
            let is_present = state.session.as_ref() == Some(session);
            if is_present {
                *state = State { session: None, lost_by: Some(by) };
            }
            is_present
        });
    }

    /// The present registration, once there is one.
    pub(crate) async fn current(&self) -> HostSession {
        let mut changes = self.0.subscribe();
        loop {
            if let Some(session) = changes.borrow_and_update().session {
                return session;
            }
            // The sender lives as long as this cell.
            let _ = changes.changed().await;
        }
    }

    /// Returns once `session` is not the present registration any more, with what it was lost by.
    pub(crate) async fn ended(&self, session: &HostSession) -> Option<ErrorKind> {
        let mut changes = self.0.subscribe();
        loop {
            let state = *changes.borrow_and_update();
            if state.session.as_ref() != Some(session) {
                return state.lost_by;
            }
            let _ = changes.changed().await;
        }
    }
}
