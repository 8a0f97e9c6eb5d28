//! Views of records, where the state store can have some.

use crate::config::{Section, Settings};
use crate::exit::Failure;

/// Makes the views in the state store that is configured, and answers their names. Only Postgres can have some: `NotSupported` else.
#[cfg(feature = "postgres")]
pub(crate) async fn make_views(settings: &Settings) -> Result<Vec<String>, Failure> {
    use std::sync::Arc;

    use super::State;
    use super::state::StatePlan;
    use crate::config::Problem;

    let plan = StatePlan::of(settings)?;
    if !matches!(plan, StatePlan::Postgres(_)) {
        return Err(unsupported(settings));
    }
    let clock: Arc<dyn flames_clock::Clock> = Arc::new(flames_clock::SystemClock::new());
    let state = plan.open(&clock).await?;
    let State::Postgres(store) = &state else { return Err(unsupported(settings)) };
    let definitions: Vec<_> = flames_records::views().iter().map(converted).collect();
    let applied = store.apply_views(&definitions).await;
    state.close().await;
    applied.map_err(|error| Problem::of_error(Section::State, "postgres", "schema", &error))?;
    let schema = settings.text("state.schema").unwrap_or_default();
    Ok(definitions.into_iter().map(|view| format!("{schema}.{}", view.name)).collect())
}

/// Makes the views in the state store that is configured. Only Postgres can have some, and this build has none.
#[cfg(not(feature = "postgres"))]
pub(crate) async fn make_views(settings: &Settings) -> Result<Vec<String>, Failure> {
    // A backend that this build does not have says how to get it.
    super::state::StatePlan::of(settings)?;
    Err(unsupported(settings))
}

/// What is said where no views can be.
fn unsupported(settings: &Settings) -> Failure {
    let name = settings.backend(Section::State);
    let error =
        flames_error::Error::new(flames_error::ErrorKind::NotSupported, "db.views", "views need Postgres");
    let failure: Failure = error
        .with_user_message(format!(
            "state ({name}), setting `state.backend`: this backend has no views; only `postgres` has."
        ))
        .into();
    failure.advise("Choose it with --state-backend postgres, or read records with `flames inspect` and `flames --json ps`.")
}

#[cfg(feature = "postgres")]
fn converted(view: &flames_records::ViewDefinition) -> flames_state_postgres::ViewDefinition {
    use flames_records::ViewColumnKind;
    use flames_state_postgres::{ColumnKind, ViewColumn, ViewDefinition};
    let column = |column: &flames_records::ViewColumn| ViewColumn {
        name: column.name.to_owned(),
        path: column.path.iter().map(|step| (*step).to_owned()).collect(),
        kind: match column.kind {
            ViewColumnKind::Text => ColumnKind::Text,
            ViewColumnKind::Number => ColumnKind::Number,
            ViewColumnKind::Json => ColumnKind::Json,
        },
    };
    ViewDefinition {
        name: view.name.to_owned(),
        keys: view.keys.to_owned(),
        columns: view.columns.iter().map(column).collect(),
    }
}
