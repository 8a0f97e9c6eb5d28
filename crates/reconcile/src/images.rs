//! Has the blobs of images that nothing names removed: when an image was replaced or removed, and on a timer.

use std::sync::Arc;
use std::time::Duration;

use flames_clock::Clock;
use flames_model::ProjectName;
use flames_records::{HintStream, Records};
use flames_service::{ImageSweeper, Service, SweepConfig};
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

/// After a hint, others may follow: they are taken together.
const GATHER: Duration = Duration::from_secs(1);

/// How often images are swept, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageSweepConfig {
    /// How often, though no image changed.
    pub every: Duration,
    /// How long a blob is kept.
    pub sweep: SweepConfig,
}

impl Default for ImageSweepConfig {
    fn default() -> Self {
        Self { every: Duration::from_secs(10 * 60), sweep: SweepConfig::default() }
    }
}

pub(crate) async fn run(
    service: Service,
    clock: Arc<dyn Clock>,
    config: ImageSweepConfig,
    stop: CancellationToken,
) {
    let sweeping = async {
        let records = service.records().clone();
        let mut sweeper = ImageSweeper::new(service, config.sweep);
        let mut hints: Option<HintStream> = None;
        loop {
            if hints.is_none() {
                hints = subscribe(&records).await;
            }
            if let Err(error) = sweeper.sweep().await {
                tracing::warn!(%error, "sweeping images stopped early; trying again later");
            }
            let hinted = async {
                match &mut hints {
                    Some(stream) => {
                        if stream.next().await.is_none() {
                            hints = None;
                        }
                    }
                    None => std::future::pending().await,
                }
                clock.sleep(GATHER).await;
            };
            tokio::select! {
                biased;
                () = hinted => {}
                () = clock.sleep(config.every) => {}
            }
        }
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = sweeping => {}
    }
}

/// Without hints the timer is enough.
async fn subscribe(records: &Records) -> Option<HintStream> {
    let prefix = Records::images_prefix(&ProjectName::new("default").ok()?).ok()?;
    records.changes(&prefix).await.ok()
}
