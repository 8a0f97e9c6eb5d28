//! VMs, images, controllers.

use std::time::Duration;

use bytes::Bytes;
use flames_error::{Error, Result};
use flames_wire::{
    Controller, ControllerDelete, ControllerList, CreateJoinToken, CreateVm, Health, Image, ImageImport,
    ImageList, ImportUpdate, JoinTokenList, Network, NewJoinToken, PageQuery, SetLabels, Version, Vm, VmList,
    VmListQuery, WaitQuery, WaitResult,
};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use http::Method;

use crate::client::{Client, segment};
use crate::{Mutation, body};

/// How an import goes: sentences of progress, then the image. An error ends it.
pub type ImportStream = BoxStream<'static, Result<ImportUpdate>>;

fn vm_path(vm: &str, rest: &str) -> String {
    format!("/v1/vms/{}{rest}", segment(vm))
}

impl Client {
    /// What the server is.
    pub async fn version(&self) -> Result<Version> {
        self.call("client.version", Method::GET, "/v1/version".to_owned()).read().await
    }

    /// Whether the server lives. Needs no credential.
    pub async fn health(&self) -> Result<Health> {
        self.call("client.health", Method::GET, "/healthz".to_owned()).read().await
    }

    /// Whether the server can reach what it stands on. `Unavailable` when not.
    pub async fn ready(&self) -> Result<Health> {
        self.call("client.ready", Method::GET, "/readyz".to_owned()).read().await
    }

    /// Creates a VM that is wanted running.
    ///
    /// Errors: `InvalidInput` with the field; `NotFound` for its image; `AlreadyExists` for its name; `Unavailable`; `OutcomeUnknown`.
    pub async fn create_vm(&self, create: &CreateVm, mutation: &Mutation) -> Result<Vm> {
        let call = self.call("client.create_vm", Method::POST, "/v1/vms".to_owned());
        call.headers(mutation.headers()?).json(create)?.read().await
    }

    /// A VM, by id or name. Errors: `NotFound`.
    pub async fn get_vm(&self, vm: &str) -> Result<Vm> {
        self.call("client.get_vm", Method::GET, vm_path(vm, "")).read().await
    }

    /// A page of VMs.
    pub async fn list_vms(&self, query: &VmListQuery) -> Result<VmList> {
        self.call("client.list_vms", Method::GET, "/v1/vms".to_owned()).query(query)?.read().await
    }

    /// All VMs that the query takes, page by page.
    pub async fn list_all_vms(&self, query: &VmListQuery) -> Result<Vec<Vm>> {
        let mut query = query.clone();
        let mut vms = Vec::new();
        loop {
            let page = self.list_vms(&query).await?;
            vms.extend(page.items);
            match page.next_cursor {
                Some(cursor) => query.cursor = Some(cursor),
                None => return Ok(vms),
            }
        }
    }

    async fn act(
        &self,
        operation: &'static str,
        vm: &str,
        action: &'static str,
        mutation: &Mutation,
    ) -> Result<Vm> {
        let call = self.call(operation, Method::POST, vm_path(vm, &format!("/{action}")));
        call.headers(mutation.headers()?).read().await
    }

    /// Wants a VM running. Errors: `NotFound`; `Conflict`; `Unavailable`; `OutcomeUnknown`.
    pub async fn start_vm(&self, vm: &str, mutation: &Mutation) -> Result<Vm> {
        self.act("client.start_vm", vm, "start", mutation).await
    }

    /// Wants a VM stopped. Errors: as [`Client::start_vm`].
    pub async fn stop_vm(&self, vm: &str, mutation: &Mutation) -> Result<Vm> {
        self.act("client.stop_vm", vm, "stop", mutation).await
    }

    /// Wants a new run of a VM. Errors: as [`Client::start_vm`].
    pub async fn restart_vm(&self, vm: &str, mutation: &Mutation) -> Result<Vm> {
        self.act("client.restart_vm", vm, "restart", mutation).await
    }

    /// Wants a VM paused. Errors: as [`Client::start_vm`].
    pub async fn pause_vm(&self, vm: &str, mutation: &Mutation) -> Result<Vm> {
        self.act("client.pause_vm", vm, "pause", mutation).await
    }

    /// Wants a paused VM running again. Errors: as [`Client::start_vm`].
    pub async fn resume_vm(&self, vm: &str, mutation: &Mutation) -> Result<Vm> {
        self.act("client.resume_vm", vm, "resume", mutation).await
    }

    /// Wants a VM gone. Errors: as [`Client::start_vm`].
    pub async fn delete_vm(&self, vm: &str, mutation: &Mutation) -> Result<Vm> {
        let call = self.call("client.delete_vm", Method::DELETE, vm_path(vm, ""));
        call.headers(mutation.headers()?).read().await
    }

    /// Replaces a VM's labels. Errors: as [`Client::start_vm`].
    pub async fn set_labels(&self, vm: &str, labels: &SetLabels, mutation: &Mutation) -> Result<Vm> {
        let call = self.call("client.set_labels", Method::PUT, vm_path(vm, "/labels"));
        call.headers(mutation.headers()?).json(labels)?.read().await
    }

    /// Replaces what a VM may reach, and who may reach it. Errors: as [`Client::start_vm`]; `InvalidInput` with the field; `NotSupported` when
    /// it runs on a host that cannot change it.
    pub async fn set_network(&self, vm: &str, network: &Network, mutation: &Mutation) -> Result<Vm> {
        let call = self.call("client.set_network", Method::PUT, vm_path(vm, "/network"));
        call.headers(mutation.headers()?).json(network)?.read().await
    }

    /// Waits until a VM is as hoped: a state, `ended`, `released` or `network`. Not reaching it is no error. The server may cut the time; ask again.
    ///
    /// Errors: `NotFound`; `InvalidInput`; `Unavailable`.
    pub async fn wait_vm(&self, vm: &str, hope: &str, timeout: Duration) -> Result<WaitResult> {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).min(3_600_000);
        let query = WaitQuery { hope: hope.to_owned(), timeout_ms: Some(timeout_ms) };
        let call = self.call("client.wait_vm", Method::GET, vm_path(vm, "/wait"));
        call.query(&query)?.waits(timeout).read().await
    }

    /// Imports an archive (or a kernel) as an image; each update as it comes. Without a limit of time: dropping the stream gives up.
    ///
    /// Errors: `InvalidInput` when the archive is refused; `Exhausted`; `Unavailable`; `OutcomeUnknown`.
    pub async fn import_image(
        &self,
        import: &ImageImport,
        archive: impl Stream<Item = Result<Bytes>> + Send + 'static,
        mutation: &Mutation,
    ) -> Result<ImportStream> {
        const OPERATION: &str = "client.import_image";
        let call = self.call(OPERATION, Method::POST, "/v1/images".to_owned()).query(import)?;
        let call = call.headers(mutation.headers()?).accept("application/x-ndjson");
        let response = call.body(body::streaming(archive), "application/octet-stream").send().await?;
        let updates = body::lines_of(OPERATION, response.into_body()).map(|line| {
            let update: ImportUpdate = serde_json::from_str(&line?).map_err(|error| {
                Error::unavailable(OPERATION, "the progress cannot be read").with_source(error)
            })?;
            match update.problem {
                Some(problem) => Err(problem.into_error(OPERATION)),
                None => Ok(update),
            }
        });
        Ok(updates.boxed())
    }

    /// An image. Errors: `NotFound`.
    pub async fn get_image(&self, name: &str) -> Result<Image> {
        self.call("client.get_image", Method::GET, format!("/v1/images/{}", segment(name))).read().await
    }

    /// A page of images.
    pub async fn list_images(&self, query: &PageQuery) -> Result<ImageList> {
        self.call("client.list_images", Method::GET, "/v1/images".to_owned()).query(query)?.read().await
    }

    /// Removes an image that no VM uses. Errors: `NotFound`; `Conflict`; `Unavailable`; `OutcomeUnknown`.
    pub async fn remove_image(&self, name: &str, mutation: &Mutation) -> Result<()> {
        let path = format!("/v1/images/{}", segment(name));
        self.call("client.remove_image", Method::DELETE, path).headers(mutation.headers()?).finish().await
    }

    /// A controller. Errors: `NotFound`.
    pub async fn get_controller(&self, id: &str) -> Result<Controller> {
        let path = format!("/v1/controllers/{}", segment(id));
        self.call("client.get_controller", Method::GET, path).read().await
    }

    /// A page of controllers.
    pub async fn list_controllers(&self, query: &PageQuery) -> Result<ControllerList> {
        let call = self.call("client.list_controllers", Method::GET, "/v1/controllers".to_owned());
        call.query(query)?.read().await
    }

    /// Says whether new VMs are placed on a controller. Errors: `NotFound`; `Unavailable`; `OutcomeUnknown`.
    pub async fn cordon_controller(
        &self,
        id: &str,
        cordoned: bool,
        mutation: &Mutation,
    ) -> Result<Controller> {
        let action = if cordoned { "cordon" } else { "uncordon" };
        let path = format!("/v1/controllers/{}/{action}", segment(id));
        let call = self.call("client.cordon_controller", Method::POST, path);
        call.headers(mutation.headers()?).read().await
    }

    /// Makes a token with which hosts join. Errors: `InvalidInput`; `Exhausted`; `Unavailable`; `OutcomeUnknown`.
    pub async fn create_join_token(&self, token: &CreateJoinToken) -> Result<NewJoinToken> {
        let call = self.call("client.create_join_token", Method::POST, "/v1/join-tokens".to_owned());
        call.json(token)?.read().await
    }

    /// The tokens that hold.
    pub async fn list_join_tokens(&self) -> Result<JoinTokenList> {
        self.call("client.list_join_tokens", Method::GET, "/v1/join-tokens".to_owned()).read().await
    }

    /// Removes a token, by what it is called by. Errors: `NotFound`; `Unavailable`; `OutcomeUnknown`.
    pub async fn remove_join_token(&self, id: &str) -> Result<()> {
        let path = format!("/v1/join-tokens/{}", segment(id));
        self.call("client.remove_join_token", Method::DELETE, path).finish().await
    }

    /// Removes a controller. Errors: `NotFound`; `Conflict` while it holds VMs and its host is not confirmed dead.
    pub async fn remove_controller(&self, id: &str, confirmed_dead: bool, mutation: &Mutation) -> Result<()> {
        let path = format!("/v1/controllers/{}", segment(id));
        let call = self.call("client.remove_controller", Method::DELETE, path);
        call.query(&ControllerDelete { confirmed_dead })?.headers(mutation.headers()?).finish().await
    }
}
