//! Ending a guest, and removing what was made for it.

use std::sync::Arc;

use flames_error::Result;
use flames_host::blocking;
use flames_vmm::StopHow;
use flames_vmm_local::{Folder, Monitor, OnHost};
use serde_json::json;

use crate::attached::RunState;
use crate::context::Context;
use crate::folder::Records;
use crate::kernel::MachineKind;
use crate::vm::{Before, Situation, Vm};

impl Vm {
    /// A guest that cannot answer (paused, or its monitor does not) is not waited for. Only a machine with ACPI has a power
    /// button; on one without, the grace is for a guest that was asked otherwise.
    pub(crate) async fn stop(self: &Arc<Self>, context: &Arc<Context>, how: StopHow) -> Result<()> {
        const OPERATION: &str = "vmm.stop";
        if !self.folder.exists() {
            return Err(self.not_found(OPERATION));
        }
        let deadlines = context.config.deadlines;
        let attached = {
            let _turn = self.turn(context, OPERATION).await?;
            if !self.folder.exists() {
                return Err(self.not_found(OPERATION));
            }
            match self.situation(context).await? {
                Situation::Before(Before::Prepared) | Situation::Exited(_) => return Ok(()),
                Situation::Before(Before::Orphans(orphans)) => {
                    self.end_all(context, &orphans, OPERATION).await?;
                    return self.folder.forget_process();
                }
                Situation::Alive(attached) => {
                    self.folder.request_stop()?;
                    attached
                }
            }
        };
        if let StopHow::PowerOff { grace } = how
            && matches!(attached.run_state(deadlines.command).await, Ok(RunState::Running))
        {
            if self.folder.spec().is_ok_and(|spec| spec.machine == MachineKind::Acpi) {
                let _ = attached.command("system_powerdown", json!({}), deadlines.command).await;
            }
            if !attached.ends_within(grace).await {
                // Writes back what QEMU itself holds of the disks; the kill does what this does not.
                let _ = attached.command("quit", json!({}), deadlines.command).await;
                attached.ends_within(deadlines.command).await;
            }
        }
        if !attached.kill().await {
            return Err(self.does_not_end(OPERATION));
        }
        attached.exit().await.map(|_| ())
    }

    /// Kills, then removes. What is left of a call that was cut short is taken away by the next, or by `adopt`.
    pub(crate) async fn destroy(self: &Arc<Self>, context: &Arc<Context>) -> Result<()> {
        const OPERATION: &str = "vmm.destroy";
        let turn = self.turn(context, OPERATION).await?;
        if self.folder.exists() {
            // A plain file, or a folder that cannot be written, takes no note.
            let _ = self.folder.request_stop();
            match self.situation(context).await {
                Ok(Situation::Before(Before::Prepared) | Situation::Exited(_)) => {}
                Ok(Situation::Before(Before::Orphans(orphans))) => {
                    self.end_all(context, &orphans, OPERATION).await?;
                }
                Ok(Situation::Alive(attached)) => {
                    if !attached.kill().await {
                        return Err(self.does_not_end(OPERATION));
                    }
                    let _ = attached.exit().await;
                }
                // The records do not tell whose processes there are; their command lines do.
                Err(_) => self.end_all(context, &self.scan().await?, OPERATION).await?,
            }
        }
        self.let_go().await;
        let (root, name, folder) = (context.root().to_owned(), self.name.clone(), self.folder.clone());
        blocking(move || {
            let _turn = turn;
            let old = folder.set_aside(&root, &name)?;
            Folder::remove_old(&old)
        })
        .await
    }
}
