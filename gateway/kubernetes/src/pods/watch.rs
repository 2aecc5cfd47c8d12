//! Keeps the set of pods current.

use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Pod as ApiPod;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::facts::facts;
use super::{Pod, Pods};
use crate::api::{Api, CallError, sort, sort_status};
use crate::status::count;

/// How long one call for changes lasts, in seconds, before it is made anew from where it was. A connection that died
/// without a word is noticed 5 s later.
const CALL_SECONDS: u32 = 55;

/// What is known by now.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Seen {
    /// All pods; `None` before the first full list.
    pub(crate) pods: Option<Arc<Pods>>,
    /// The server does not let us see them.
    pub(crate) forbidden: Option<String>,
}

/// A watch that ends with this.
pub(crate) struct Watch {
    seen: watch::Receiver<Seen>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Watches the pods with these labels.
    pub(crate) fn start(api: Api, selector: &str) -> Self {
        let (sender, seen) = watch::channel(Seen::default());
        let config = watcher::Config::default().labels(selector).timeout(CALL_SECONDS);
        Self { seen, task: tokio::spawn(follow(api, config, sender)) }
    }

    pub(crate) fn seen(&self) -> watch::Receiver<Seen> {
        self.seen.clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(api: Api, config: watcher::Config, sender: watch::Sender<Seen>) {
    let pods: kube::Api<ApiPod> = kube::Api::namespaced(api.client(), api.namespace());
    let mut events = watcher::watcher(pods, config).default_backoff().boxed();
    let mut listed = Pods::new();
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                failed(&api, &error, &sender);
                continue;
            }
        };
        match event {
            // What is known stays until the new list is whole: an empty set in between would close every pod.
            Event::Init => listed.clear(),
            Event::InitApply(pod) => listed.extend(facts(pod).map(|pod| (pod.uid.clone(), pod))),
            Event::InitDone => {
                count(&api.health().watches_begun);
                api.health().answered(Instant::now());
                let listed = Arc::new(std::mem::take(&mut listed));
                let seen = Seen { pods: Some(listed), forbidden: None };
                sender.send_if_modified(|known| std::mem::replace(known, seen.clone()) != seen);
            }
            Event::Apply(pod) => {
                if let Some(pod) = facts(pod) {
                    change(&sender, &pod.uid.clone(), Some(pod));
                }
            }
            Event::Delete(pod) => {
                if let Some(pod) = facts(pod) {
                    change(&sender, &pod.uid, None);
                }
            }
        }
    }
}

/// Notes what is known of a pod now, and tells of it only if it matters: most changes of a pod do not concern placement.
fn change(sender: &watch::Sender<Seen>, uid: &str, pod: Option<Pod>) {
    sender.send_if_modified(|seen| {
        let Some(pods) = seen.pods.as_mut().filter(|pods| pods.get(uid) != pod.as_ref()) else { return false };
        let pods = Arc::make_mut(pods);
        match pod {
            Some(pod) => pods.insert(uid.to_owned(), pod),
            None => pods.remove(uid),
        };
        true
    });
}

fn failed(api: &Api, error: &watcher::Error, sender: &watch::Sender<Seen>) {
    let error = match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => sort(error),
        // As a rule, the place to go on from is too old: the watcher makes a new list.
        watcher::Error::WatchError(status) if status.code == 410 => return,
        watcher::Error::WatchError(status) => sort_status(status),
        watcher::Error::NoResourceVersion => CallError::Refused("a list without a version".to_owned()),
    };
    api.note(Instant::now(), Some(&error));
    if let CallError::Forbidden(why) = error {
        sender.send_modify(|seen| seen.forbidden = Some(why));
    }
}
