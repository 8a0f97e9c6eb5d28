//! Ending a guest, and removing what was made for it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use flames_error::Result;
use flames_firecracker_network::Incarnation;
use flames_host::blocking;
use flames_vmm::{Phase, StopHow};
use flames_vmm_local::{Folder, Monitor, OnHost};

use crate::context::Context;
use crate::vm::{Before, Situation, Vm};

impl Vm {
    /// A guest that cannot answer (paused, or its monitor does not) is not waited for. The power button is Ctrl, Alt and Delete on a
    /// keyboard: whoever in the guest heeds it reboots, which ends Firecracker.
    pub(crate) async fn stop(self: &Arc<Self>, context: &Arc<Context>, how: StopHow) -> Result<()> {
        const OPERATION: &str = "vmm.stop";
        let attached = {
            let _turn = self.turn(context, OPERATION).await?;
            if !self.folder.exists() {
                return Err(self.not_found(OPERATION));
            }
            match self.situation(context).await? {
                Situation::Before(Before::Half | Before::Prepared(_)) | Situation::Exited(_) => return Ok(()),
                Situation::Before(Before::Stale(jail)) => return self.forget_start(&jail).await,
                // It has run nothing, and goes on doing so.
                Situation::Alive(attached) if matches!(attached.phase().await, Ok(Phase::Starting)) => {
                    let jail = attached.jail.clone();
                    return self.forget_start(&jail).await;
                }
                Situation::Alive(attached) => {
                    self.folder.request_stop()?;
                    attached
                }
            }
        };
        if let StopHow::PowerOff { grace } = how
            && matches!(attached.phase().await, Ok(Phase::Running))
            && attached.client.send_ctrl_alt_del().await.is_ok()
        {
            attached.ends_within(grace).await;
        }
        if !attached.kill().await {
            return Err(self.does_not_end(OPERATION));
        }
        attached.exit().await.map(|_| ())
    }

    /// Kills, then removes. What is left of a call that was cut short is taken away by the next. Runs to its end even when the caller is
    /// dropped.
    pub(crate) async fn destroy(self: Arc<Self>, context: Arc<Context>) -> Result<()> {
        const OPERATION: &str = "vmm.destroy";
        let _turn = self.turn(&context, OPERATION).await?;
        if self.folder.exists() {
            // A plain file, or a folder that cannot be written, takes no note.
            let _ = self.folder.request_stop();
        }
        self.unmake(&context).await
    }

    /// Removes everything of the incarnation: the folder's name first, so that nobody takes what is half removed for half made.
    pub(crate) async fn unmake(&self, context: &Arc<Context>) -> Result<()> {
        self.release().await;
        let host = context.host().await?;
        let (root, name, folder) = (context.root().to_owned(), self.name.clone(), self.folder.clone());
        let old = blocking(move || folder.set_aside(&root, &name)).await?;
        // Kills what runs, by every trace of it.
        host.jails.remove(&self.jail_name).await?;
        if let Some(networks) = &host.networks {
            networks.remove(&Incarnation::new(self.name.as_str())?).await?;
        }
        self.has_network.store(false, Ordering::Release);
        blocking(move || Folder::remove_old(&old)).await
    }
}
