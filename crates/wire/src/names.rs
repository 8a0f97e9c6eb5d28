//! The closed sets of names. Each mirrors one of the model's, so that a change there does not change the API by accident: it does
//! not compile until somebody decided what the API says.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

macro_rules! mirrored {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$variant_doc])* $variant),* }

        impl From<flames_model::$name> for $name {
            fn from(value: flames_model::$name) -> Self {
                match value { $(flames_model::$name::$variant => Self::$variant),* }
            }
        }

        impl From<$name> for flames_model::$name {
            fn from(value: $name) -> Self {
                match value { $($name::$variant => Self::$variant),* }
            }
        }
    };
}

mirrored!(
    /// What is wanted of a VM.
    DesiredState {
        /// It runs.
        Running,
        /// It is paused.
        Paused,
        /// It does not run.
        Stopped,
        /// It is gone.
        Deleted,
    }
);
mirrored!(
    /// How a VM looks.
    VmState {
        /// It has no place yet.
        Pending,
        /// It has a place.
        Scheduled,
        /// Its machine is being made.
        Preparing,
        /// It boots.
        Starting,
        /// It is loaded from a snapshot.
        Restoring,
        /// It runs.
        Running,
        /// It is being paused.
        Pausing,
        /// It is paused.
        Paused,
        /// It is being ended.
        Stopping,
        /// It has ended.
        Stopped,
        /// It could not run, or broke down.
        Failed,
        /// Its host is silent.
        Lost,
        /// It has ended and will run again.
        Restarting,
        /// It is being removed.
        Deleting,
        /// It is gone.
        Deleted,
    }
);
mirrored!(
    /// Where an incarnation is in its life.
    IncarnationState {
        /// Placed; its controller has not begun.
        Scheduled,
        /// Its image, disk and machine are being made.
        Preparing,
        /// Its machine boots.
        Starting,
        /// Its machine is loaded from a snapshot.
        Restoring,
        /// Its workload was started.
        Running,
        /// It is being paused.
        Pausing,
        /// Its processors stand still.
        Paused,
        /// It is being ended.
        Stopping,
        /// It has ended.
        Stopped,
        /// It could not run, or broke down.
        Failed,
        /// Its controller is silent.
        Lost,
    }
);
mirrored!(
    /// Whether a VM's writable layer outlives a run.
    DiskKind {
        /// It outlives runs and keeps its place while the VM is stopped.
        Persistent,
        /// Each run starts from the image again.
        Ephemeral,
    }
);
mirrored!(
    /// When a run that ended is started again.
    RestartRule {
        /// Never.
        Never,
        /// When it failed.
        OnFailure,
        /// Always, until stopped or deleted.
        Always,
    }
);
mirrored!(
    /// What happens to a VM whose host is lost.
    OnHostLoss {
        /// It is `lost` until the host returns or an operator confirms that it is dead.
        Wait,
        /// It is placed elsewhere once it is certain that it no longer runs there.
        Restart,
    }
);
mirrored!(
    /// What ended a workload.
    ExitCause {
        /// It ended by itself.
        Workload,
        /// It was ended because somebody asked.
        Stopped,
        /// Its machine or host broke down.
        Machine,
    }
);
mirrored!(
    /// What an image is for.
    ImageKind {
        /// A root file system.
        Rootfs,
        /// A kernel.
        Kernel,
    }
);
/// What becomes of device nodes in an archive that is imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeviceNodes {
    /// The archive is refused.
    #[default]
    Refuse,
    /// They are left out.
    Skip,
    /// They are made.
    Keep,
}

mirrored!(
    /// Why something ended or does not go on, by kind.
    ReasonCode {
        /// It was asked for.
        Requested,
        /// The run's time was up.
        TimedOut,
        /// The VM deletes itself after its run.
        AutoDeleted,
        /// The workload ended by itself.
        WorkloadExited,
        /// The workload could not be started.
        WorkloadNotStarted,
        /// The guest ended without its workload having ended.
        GuestStopped,
        /// The machine's monitor broke down or was killed.
        MachineFailed,
        /// The machine could not be made.
        NotPrepared,
        /// The guest's agent did not answer in time.
        AgentSilent,
        /// The host's controller is silent.
        HostLost,
        /// An operator confirmed that the host is dead.
        HostConfirmedDead,
        /// No controller has room, or the labels asked for.
        NoCapacity,
        /// The image or kernel is not there any more.
        ImageMissing,
        /// Something that takes its time is waited for.
        Waiting,
        /// A machine that lives could not be put under the network that is wanted.
        NetworkNotApplied,
        /// The guest could not be saved.
        SnapshotFailed,
        /// What a guest was to be loaded from is damaged, or is not there.
        SnapshotUnusable,
        /// No controller's driver, processor and kernel are those that a saved guest needs.
        Incompatible,
    }
);
mirrored!(
    /// Where a snapshot is in its life.
    SnapshotState {
        /// It was asked for; the VM's controller has not begun.
        Pending,
        /// The guest is being saved, or what was saved is being stored.
        Taking,
        /// All of it is stored: VMs can be made from it.
        Ready,
        /// It could not be taken.
        Failed,
        /// It is being removed.
        Deleting,
    }
);

impl SnapshotState {
    /// The state's name, as it stands in JSON.
    pub fn as_str(self) -> &'static str {
        flames_model::SnapshotState::from(self).as_str()
    }
}

impl std::fmt::Display for SnapshotState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl VmState {
    /// The state's name, as it stands in JSON.
    pub fn as_str(self) -> &'static str {
        flames_model::VmState::from(self).as_str()
    }

    /// Whether no run goes on: `stopped`, `failed`, `deleted`.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Stopped | Self::Failed | Self::Deleted)
    }
}

impl std::fmt::Display for VmState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl IncarnationState {
    /// The state's name, as it stands in JSON.
    pub fn as_str(self) -> &'static str {
        flames_model::IncarnationState::from(self).as_str()
    }
}

impl std::fmt::Display for IncarnationState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl ImageKind {
    /// The kind's name, as it stands in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rootfs => "rootfs",
            Self::Kernel => "kernel",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_in_json_is_the_one_that_as_str_gives() {
        for state in flames_model::VmState::ALL {
            let state = VmState::from(state);
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
        assert_eq!(serde_json::to_value(ImageKind::Rootfs).unwrap(), ImageKind::Rootfs.as_str());
        assert_eq!(serde_json::to_value(IncarnationState::Lost).unwrap(), IncarnationState::Lost.as_str());
    }
}
