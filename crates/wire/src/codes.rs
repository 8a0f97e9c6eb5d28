//! Every stable error code with its title. Each has a page at `/docs/errors/<CODE>`.

/// The code of an input field that is missing, of the wrong type, or out of its range.
pub const INVALID_FIELD: &str = "INVALID_FIELD";
/// The code of a request that could not be read at all.
pub const INVALID_REQUEST: &str = "INVALID_REQUEST";
/// The code of a body whose digest is not the one that was declared.
pub const IMAGE_DIGEST_MISMATCH: &str = "IMAGE_DIGEST_MISMATCH";
/// The code of a defect of Flames.
pub const INTERNAL: &str = "INTERNAL";

/// Each code with its title: the same for every error of that code.
pub const TITLES: &[(&str, &str)] = &[
    (INVALID_FIELD, "An input field is missing, of the wrong type, or out of its range"),
    (INVALID_REQUEST, "The request could not be read"),
    ("VM_NOT_FOUND", "No such VM"),
    ("VM_NAME_TAKEN", "Another VM has this name"),
    ("VM_DELETED", "The VM is deleted"),
    ("VM_NOT_RUNNING", "The VM does not run"),
    ("VM_NOT_PAUSABLE", "The VM's machine cannot be paused"),
    ("NETWORK_NOT_CHANGEABLE", "The network cannot be changed while the VM runs"),
    ("IMAGE_NOT_FOUND", "No such image"),
    ("IMAGE_WRONG_KIND", "The image is of another kind than the request needs"),
    ("IMAGE_IN_USE", "A VM uses the image"),
    ("IMAGE_REFUSED", "The archive cannot be made into an image"),
    ("SNAPSHOT_NOT_FOUND", "No such snapshot"),
    ("SNAPSHOT_NAME_TAKEN", "Another snapshot has this name"),
    ("SNAPSHOT_IN_PROGRESS", "A snapshot of the VM is under way"),
    ("SNAPSHOT_NOT_READY", "The snapshot is not ready"),
    ("SNAPSHOT_IN_USE", "The snapshot is still needed"),
    ("SNAPSHOT_BASE_UNUSABLE", "No difference can be saved from that snapshot"),
    ("CONTROLLER_NOT_FOUND", "No such controller"),
    ("CONTROLLER_IN_USE", "The controller still holds VMs"),
    ("ADDRESS_BLOCK_IN_USE", "VMs hold addresses of the controller's block"),
    ("CONTROLLER_SUPERSEDED", "A newer registration of the controller exists"),
    ("CONTROLLER_NAME_TAKEN", "Another controller has this name"),
    ("BLOB_NOT_FOUND", "No such blob"),
    ("JOIN_TOKEN_NOT_FOUND", "No such join token"),
    ("HOST_UNREACHABLE", "The VM's host cannot be reached right now"),
    ("GENERATION_MISMATCH", "The record has changed"),
    ("IDEMPOTENCY_KEY_REUSED", "The idempotency key was used with another body"),
    ("CONTENDED", "Many changed the same thing at once"),
    ("ROUTE_NOT_FOUND", "No such path"),
    ("METHOD_NOT_ALLOWED", "The path does not take this method"),
    ("UNAUTHENTICATED", "The credential is missing or wrong"),
    ("FORBIDDEN", "The caller may not do that"),
    ("BODY_TOO_LARGE", "The body is larger than the route takes"),
    ("REQUEST_TIMEOUT", "The request took too long"),
    ("UNSUPPORTED_MEDIA_TYPE", "The body's media type is not one that the route takes"),
    ("NOT_SUPPORTED", "What the request needs is not available here"),
    ("EXHAUSTED", "A limit of the installation is used up"),
    ("UNAVAILABLE", "A part of the control plane cannot be reached right now"),
    (INTERNAL, "A defect of Flames"),
    ("PROCESS_NOT_FOUND", "No such process in the guest"),
    ("PROCESS_NOT_STARTED", "The process could not be started in the guest"),
    ("GUEST_FILE", "A file in the guest could not be read or written"),
    ("IMAGE_MALFORMED", "The archive is damaged or not of the form that it claims"),
    ("IMAGE_TOO_LARGE", "The archive passes a limit of the conversion"),
    (IMAGE_DIGEST_MISMATCH, "The bytes do not have the digest or size that was announced"),
    ("IMAGE_UNSUPPORTED", "The archive is sound and of a form that is not supported"),
    ("NOT_A_KERNEL", "The file is not a kernel that can be booted here"),
    ("IMAGE_CONVERSION_TIMED_OUT", "The conversion of the archive did not end in time"),
    ("IMAGE_NO_SPACE", "There is no room on the disk for the image"),
];

/// The code as this table holds it, when it is known.
pub fn known(code: &str) -> Option<&'static str> {
    TITLES.iter().find(|(known, _)| *known == code).map(|(known, _)| *known)
}

/// The title of a code.
pub fn title(code: &str) -> &'static str {
    TITLES.iter().find(|(known, _)| *known == code).map_or("An error", |(_, title)| *title)
}
