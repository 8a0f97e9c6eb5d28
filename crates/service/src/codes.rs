//! Stable public error codes. Each has a page `docs/errors/<CODE>.md` that says what it means and what to do.

use flames_error::{Error, ErrorKind};

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        $($(#[$doc])* pub const $name: &str = stringify!($name);)*
        /// Every code.
        pub const ALL: &[&str] = &[$($name),*];
    };
}

codes! {
    /// An input field is missing, of the wrong type, or out of its range.
    INVALID_FIELD,
    /// The request could not be read at all.
    INVALID_REQUEST,
    /// No such VM.
    VM_NOT_FOUND,
    /// Another VM has this name.
    VM_NAME_TAKEN,
    /// The VM is deleted or being deleted: nothing else can be asked of it.
    VM_DELETED,
    /// The VM does not run, which the request needs.
    VM_NOT_RUNNING,
    /// The VM's machine cannot be paused.
    VM_NOT_PAUSABLE,
    /// The VM runs on a host that cannot change the network of what runs.
    NETWORK_NOT_CHANGEABLE,
    /// No such image.
    IMAGE_NOT_FOUND,
    /// The image is of another kind than the request needs.
    IMAGE_WRONG_KIND,
    /// A VM uses the image.
    IMAGE_IN_USE,
    /// The archive cannot be made into an image.
    IMAGE_REFUSED,
    /// No such snapshot.
    SNAPSHOT_NOT_FOUND,
    /// Another snapshot has this name.
    SNAPSHOT_NAME_TAKEN,
    /// A snapshot of the VM is under way already.
    SNAPSHOT_IN_PROGRESS,
    /// The snapshot is not ready, so nothing can be made of it.
    SNAPSHOT_NOT_READY,
    /// A VM is still to be loaded from the snapshot, or another one is being saved as a difference from it.
    SNAPSHOT_IN_USE,
    /// There is no snapshot that the difference can be saved from, or it is another.
    SNAPSHOT_BASE_UNUSABLE,
    /// No such controller.
    CONTROLLER_NOT_FOUND,
    /// The controller still holds VMs.
    CONTROLLER_IN_USE,
    /// The controller's address block cannot be changed: VMs hold addresses of it.
    ADDRESS_BLOCK_IN_USE,
    /// A newer registration of the controller exists.
    CONTROLLER_SUPERSEDED,
    /// Another controller has this name.
    CONTROLLER_NAME_TAKEN,
    /// No such blob.
    BLOB_NOT_FOUND,
    /// No such join token.
    JOIN_TOKEN_NOT_FOUND,
    /// The host of the VM cannot be reached right now.
    HOST_UNREACHABLE,
    /// The record is not of the generation that the request names.
    GENERATION_MISMATCH,
    /// The idempotency key was used with another body.
    IDEMPOTENCY_KEY_REUSED,
    /// Many changed the same thing at once; try again.
    CONTENDED,
    /// No such path.
    ROUTE_NOT_FOUND,
    /// The path does not take this method.
    METHOD_NOT_ALLOWED,
    /// The credential is missing or wrong.
    UNAUTHENTICATED,
    /// The caller may not do that.
    FORBIDDEN,
    /// The body is larger than the route takes.
    BODY_TOO_LARGE,
    /// The request took too long.
    REQUEST_TIMEOUT,
    /// The body's media type is not the one that the route takes.
    UNSUPPORTED_MEDIA_TYPE,
    /// What the request needs is not available here.
    NOT_SUPPORTED,
    /// A limit of the installation is used up.
    EXHAUSTED,
    /// A part of the control plane cannot be reached right now.
    UNAVAILABLE,
    /// A defect of Flames.
    INTERNAL,
    /// A process in the guest does not exist.
    PROCESS_NOT_FOUND,
    /// A process could not be started in the guest.
    PROCESS_NOT_STARTED,
    /// A file in the guest could not be read or written.
    GUEST_FILE,
}

pub(crate) fn vm_not_found(vm: &str) -> Error {
    Error::not_found("service.vm", "vm", vm)
        .with_code(VM_NOT_FOUND)
        .with_user_message(format!("There is no VM `{vm}`. List the VMs with `flames ps --all`."))
}

pub(crate) fn vm_deleted(vm: &str) -> Error {
    Error::new(ErrorKind::Conflict, "service.vm", "the VM is wanted deleted")
        .with_resource("vm", vm)
        .with_code(VM_DELETED)
        .with_user_message(format!("The VM `{vm}` is deleted; nothing else can be asked of it."))
}

pub(crate) fn contended(operation: &'static str) -> Error {
    Error::new(ErrorKind::Unavailable, operation, "too many conflicting changes in a row")
        .with_code(CONTENDED)
        .with_retry_after(std::time::Duration::from_millis(200))
        .with_user_message("Others changed the same thing at the same time. Send the request again.")
}

pub(crate) fn generation_mismatch(expected: u64, actual: u64) -> Error {
    Error::new(ErrorKind::Conflict, "service.mutation", "the generation is another")
        .with_code(GENERATION_MISMATCH)
        .with_context("expected", expected)
        .with_context("actual", actual)
        .with_user_message(format!(
            "The record is at generation {actual}, not {expected}. Read it again and decide anew."
        ))
}

pub(crate) fn key_reused() -> Error {
    Error::new(ErrorKind::InvalidInput, "service.mutation", "an idempotency key came with another body")
        .with_code(IDEMPOTENCY_KEY_REUSED)
        .with_field("Idempotency-Key")
        .with_user_message(
            "This idempotency key was used for a request with another body. Use a new key for a new request.",
        )
}

/// Gives an input error the code of one, unless it has another.
pub(crate) fn coded_input(error: Error) -> Error {
    if error.kind() == ErrorKind::InvalidInput && error.code().is_none() {
        error.with_code(INVALID_FIELD)
    } else {
        error
    }
}

pub(crate) fn image_not_found(name: &flames_model::ImageName) -> Error {
    Error::not_found("service.image", "image", name.as_str())
        .with_code(IMAGE_NOT_FOUND)
        .with_user_message(format!("There is no image `{name}`. List them with `flames image ls`, or import it with `flames image import`."))
}

pub(crate) fn snapshot_not_found(snapshot: &str) -> Error {
    Error::not_found("service.snapshot", "snapshot", snapshot)
        .with_code(SNAPSHOT_NOT_FOUND)
        .with_user_message(format!("There is no snapshot `{snapshot}`. List them with `flames snapshot ls`."))
}

pub(crate) fn controller_not_found(id: &str) -> Error {
    Error::not_found("service.controller", "controller", id)
        .with_code(CONTROLLER_NOT_FOUND)
        .with_user_message(format!("There is no controller `{id}`. List them with `flames controllers`."))
}

pub(crate) fn may_not_join() -> Error {
    Error::new(ErrorKind::PermissionDenied, "service.register_controller", "no join token, or a wrong one")
        .with_code(UNAUTHENTICATED)
        .with_user_message(
            "This controller is not known, and its join token is missing, wrong or expired. Make one with `flames controllers token create`.",
        )
}

pub(crate) fn wrong_secret(id: &str) -> Error {
    Error::new(ErrorKind::PermissionDenied, "service.register_controller", "the controller's secret is another")
        .with_resource("controller", id)
        .with_code(UNAUTHENTICATED)
        .with_user_message(format!(
            "Another host joined as the controller {id}, with another secret. If this host's data folder was made anew, remove that controller \
             with `flames controllers remove`, and join again."
        ))
}

pub(crate) fn join_token_not_found(id: &str) -> Error {
    Error::not_found("service.join_token", "join token", id)
        .with_code(JOIN_TOKEN_NOT_FOUND)
        .with_user_message(format!(
            "There is no join token `{id}`. List them with `flames controllers token ls`."
        ))
}

pub(crate) fn superseded(id: &str) -> Error {
    Error::new(ErrorKind::LeaseLost, "service.host", "a newer registration of the controller exists")
        .with_resource("controller", id)
        .with_code(CONTROLLER_SUPERSEDED)
        .with_user_message(
            "Another process has registered as this controller; this one must stop or register again.",
        )
}

pub(crate) fn forbidden_report(incarnation: &str) -> Error {
    Error::new(ErrorKind::PermissionDenied, "service.report", "the incarnation is another controller's")
        .with_resource("incarnation", incarnation)
        .with_code(FORBIDDEN)
        .with_user_message("A controller reports only on what is placed on it.")
}
