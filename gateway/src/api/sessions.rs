//! What the application keeps in the sessions of its users: `session_get` and `session_set`.
//!
//! No session is an answer, not an error: a session ends whenever its time to live does.

use backplane::UserId;

use super::error::{ApiError, ErrorCode};
use super::outcome::Outcome;
use super::request::{SessionGetRequest, SessionSetRequest};
use crate::node::Node;
use crate::sessions::is_valid_id;
use crate::sessions::record::STATE_BYTES;
use crate::sessions::store::{Key, Sessions, StateWrite};

pub(super) async fn get(node: &Node, request: &SessionGetRequest<'_>) -> Result<Outcome, ApiError> {
    let sessions = sessions(node, &request.session)?;
    let view = sessions.view(&UserId::from(&*request.user), &request.session).await;
    view.map(Outcome::Session).map_err(ApiError::internal)
}

pub(super) async fn set(node: &Node, request: &SessionSetRequest<'_>) -> Result<Outcome, ApiError> {
    let sessions = sessions(node, &request.session)?;
    let state = request.state.map(|state| state.get().to_owned());
    if let Some(state) = &state
        && state.len() > STATE_BYTES
    {
        let detail = format_args!("state has {} bytes, more than {STATE_BYTES}", state.len());
        return Err(ApiError::bad_request(detail));
    }
    let (user, ttl) = (UserId::from(&*request.user), node.runtime().sessions.ttl);
    let key = Key { user: &user, id: &request.session, ttl };
    match sessions.set_state(key, state, request.revision).await.map_err(ApiError::internal)? {
        StateWrite::TooLarge => Err(ApiError::bad_request("with this state the session would be too large")),
        written => Ok(Outcome::State(written)),
    }
}

fn sessions(node: &Node, id: &str) -> Result<Sessions, ApiError> {
    if !is_valid_id(id) {
        return Err(ApiError::bad_request("session must be 8 to 64 of the characters A-Z a-z 0-9 _ -"));
    }
    node.sessions().filter(|_| node.runtime().sessions.enabled).ok_or_else(|| ErrorCode::NotAvailable.into())
}
