//! What proxies are asked, and what becomes of their answers.

use bytes::Bytes;
use protocol::Error;

use super::harness::*;
use crate::channels::ChannelOptions;
use crate::io::{Input, Overrides, ServerSubscribe, SubscriptionOptions};
use crate::proxy::{
    ConnectVerdict, ProxyAnswer, ProxyName, ProxyRefusal, ProxyResult, ProxySettings, PublishOptions, PublishVerdict,
    RefreshVerdict, RpcRoutes, SubRefreshVerdict, SubscribeVerdict,
};
use crate::{ClientError, CloseCode, Settings};

fn proxy() -> Option<ProxyName> {
    Some(ProxyName::from("app"))
}

/// Every proxy is on; in `asked` channels the application decides, `json` ones take JSON only.
fn world() -> World {
    let settings = Settings {
        ping_interval: seconds(0),
        proxy: ProxySettings {
            connect: true,
            refresh: true,
            rpc: RpcRoutes { without_namespace: proxy(), ..RpcRoutes::default() },
            keeps_meta: true,
            emulates_headers: true,
        },
        ..Settings::default()
    };
    let mut world = World::with(settings);
    let asked = ChannelOptions {
        history: history(),
        subscribe_proxy: proxy(),
        publish_proxy: proxy(),
        sub_refresh_proxy: proxy(),
        ..ChannelOptions::default()
    };
    let json = ChannelOptions { publication_data_format: crate::DataFormat::Json, ..asked.clone() };
    world.channels = channels_of([("asked", asked), ("json", json)], Some(ChannelOptions::default()));
    world
}

fn answer(world: &mut World, answer: ProxyAnswer) -> Vec<String> {
    world.give(Input::Proxied(Box::new(answer)))
}

fn verdict(user: &str) -> ConnectVerdict {
    ConnectVerdict { grant: grant(user), data: Bytes::new() }
}

/// A user `u` that the proxy let in, with this expiry.
fn open(expire_at: Option<i64>) -> World {
    let mut world = world();
    world.send(r#"{"id":1,"connect":{}}"#);
    let mut verdict = verdict("u");
    verdict.grant.expire_at = expire_at;
    answer(&mut world, ProxyAnswer::Connect(Ok(Some(verdict))));
    assert!(world.session.is_established());
    world
}

/// The same, subscribed to `asked:a`, which expires 10 s from now.
fn subscribed() -> World {
    let mut world = open(None);
    world.send(r#"{"id":2,"subscribe":{"channel":"asked:a"}}"#);
    let expire_at = Some(world.now.unix + 10);
    let result = Ok(Some(SubscribeVerdict { expire_at, ..SubscribeVerdict::default() }));
    answer(&mut world, ProxyAnswer::Subscribe { id: 2, channel: name("asked:a"), result });
    let reply = world.joined("asked:a", at("e", 1));
    assert_eq!(reply, [r#"{"id":2,"subscribe":{}}"#], "no expiry is told: refreshing is not the client's task");
    world
}

fn down<T>() -> ProxyResult<T> {
    Err(ProxyRefusal::Unavailable("down".to_owned()))
}

fn no<T>() -> ProxyResult<T> {
    Err(ProxyRefusal::Error(Error { code: 1000, message: "no".to_owned(), temporary: true }))
}

fn gone<T>() -> ProxyResult<T> {
    Err(ProxyRefusal::Disconnect(CloseCode::custom(4500, "gone").expect("a good code")))
}

fn refused(id: u32) -> String {
    format!(r#"{{"id":{id},"error":{{"code":1000,"message":"no","temporary":true}}}}"#)
}

#[test]
fn a_connect_without_a_token_is_asked_about() {
    let mut world = world();
    let frame = r#"{"id":1,"connect":{"data":{"a":1},"name":"js","version":"7","headers":{"X-A":"b"},"subs":{"asked:s":{"recover":true,"offset":1,"epoch":"e"},"asked:t":{}}}}"#;
    let asked = world.send(frame);
    assert_eq!(
        asked,
        [r#"headers {"X-A": "b"}"#, r#"ask connect: connect {"a":1} js 7 ["asked:s", "asked:t"]"#],
        "the question has everything"
    );
    let mut verdict = verdict("u");
    verdict.data = Bytes::from_static(b"{\"d\":1}");
    verdict.grant.expire_at = Some(world.now.unix + 60);
    verdict.grant.meta = Bytes::from_static(b"{\"m\":1}");
    verdict.grant.subs = [("asked:s".to_owned(), SubscriptionOptions::default())].into();
    let joins = answer(&mut world, ProxyAnswer::Connect(Ok(Some(verdict))));
    assert_eq!(joins, [r#"established "u""#, "join asked:s history"], "only what the application names");
    let reply = world.joined("asked:s", at("e", 1));
    assert_eq!(
        reply,
        [format!(
            r#"{{"id":1,"connect":{{"client":"{CLIENT}","version":"v","data":{{"d":1}},"subs":{{"asked:s":{{"was_recovering":true}}}}}}}}"#
        )]
    );
    let asked = world.send(r#"{"id":2,"rpc":{"method":"m","data":1}}"#);
    assert_eq!(asked, [r#"ask app u meta {"m":1}: rpc 2 m 1"#]);
}

#[test]
fn a_connect_with_a_token_is_not_asked_about() {
    let mut world = world();
    assert_eq!(world.send(r#"{"id":1,"connect":{"token":"t","data":1}}"#), ["verify connection t"]);
}

#[test]
fn what_the_connect_proxy_says_is_done() {
    let past = || {
        let mut verdict = verdict("u");
        verdict.grant.expire_at = Some(1);
        verdict
    };
    let unknown = || {
        let mut verdict = verdict("u");
        verdict.grant.subs = [("nosuch:a".to_owned(), SubscriptionOptions::default())].into();
        verdict
    };
    let anonymous = || Ok(Some(verdict("")));
    let connected = format!(r#"{{"id":1,"connect":{{"client":"{CLIENT}","version":"v"}}}}"#);
    for (row, (result, allow_anonymous, expected)) in [
        (Ok(Some(verdict("u"))), false, vec![r#"established "u""#.to_owned(), connected.clone()]),
        (anonymous(), false, vec![r#"established """#.to_owned(), connected.clone()]),
        (Ok(None), false, vec![CLOSE_3501.to_owned()]),
        (Ok(None), true, vec![r#"established """#.to_owned(), connected]),
        (no(), true, vec![refused(1)]),
        (gone(), true, vec!["close 4500 gone".to_owned()]),
        (down(), true, vec![error(1, 100)]),
        (Ok(Some(past())), true, vec![error(1, 110)]),
        (Ok(Some(unknown())), true, vec![error(1, 102)]),
    ]
    .into_iter()
    .enumerate()
    {
        let mut world = world();
        world.settings.allow_anonymous = allow_anonymous;
        world.send(r#"{"id":1,"connect":{}}"#);
        assert_eq!(answer(&mut world, ProxyAnswer::Connect(result)), expected, "row {row}");
        assert_eq!(answer(&mut world, ProxyAnswer::Connect(Ok(Some(verdict("w"))))), [""; 0], "row {row}, again");
    }
}

#[test]
fn a_connect_that_is_not_answered_ends_by_the_stale_delay() {
    let mut world = world();
    world.send(r#"{"id":1,"connect":{}}"#);
    assert_eq!(world.pass(seconds(10)), ["close 3004 internal server error"]);
}

#[test]
fn what_the_refresh_proxy_says_is_done() {
    let later = RefreshVerdict { expire_at: Some(10_100), ..RefreshVerdict::default() };
    let past = RefreshVerdict { expire_at: Some(1), ..RefreshVerdict::default() };
    let expired = RefreshVerdict { expired: true, expire_at: Some(10_100), ..RefreshVerdict::default() };
    const EXPIRED: &str = "close 3005 connection expired";
    for (row, (result, expected, lives)) in [
        (Ok(Some(later)), None, Some(90)),
        (Ok(Some(RefreshVerdict::default())), None, None),
        (down(), None, Some(60)),
        (Ok(Some(past)), Some(EXPIRED), None),
        (Ok(Some(expired)), Some(EXPIRED), None),
        (Ok(None), Some(EXPIRED), None),
        (no(), Some(EXPIRED), None),
        (gone(), Some(EXPIRED), None),
    ]
    .into_iter()
    .enumerate()
    {
        let mut world = open(Some(10_010));
        assert_eq!(world.pass(seconds(9)), [""; 0], "row {row}");
        assert_eq!(world.pass(seconds(1)), ["ask refresh u: refresh"], "row {row}: at once, without a grace");
        let said = answer(&mut world, ProxyAnswer::Refresh(result));
        assert_eq!(said, expected.into_iter().collect::<Vec<_>>(), "row {row}");
        match lives {
            Some(time) => {
                assert_eq!(world.pass(seconds(time - 1)), [""; 0], "row {row}");
                assert_eq!(world.pass(seconds(1)), ["ask refresh u: refresh"], "row {row}");
            }
            None => assert_eq!(world.session.next_deadline(), None, "row {row}"),
        }
    }
}

#[test]
fn a_refresh_brings_new_info_and_meta_and_is_asked_again_when_no_answer_comes() {
    let mut world = open(Some(10_010));
    world.pass(seconds(10));
    assert_eq!(world.pass(seconds(60)), ["ask refresh u: refresh"]);
    let some = |text: &'static str| Some(Bytes::from_static(text.as_bytes()));
    let verdict = RefreshVerdict { info: some("{\"i\":1}"), meta: some("7"), ..RefreshVerdict::default() };
    assert_eq!(answer(&mut world, ProxyAnswer::Refresh(Ok(Some(verdict)))), [""; 0]);
    assert_eq!(world.session.info().map(|info| info.conn_info.clone()), some("{\"i\":1}"));
    assert_eq!(world.send(r#"{"id":2,"rpc":{}}"#), ["ask app u meta 7: rpc 2  "]);
    // The first question is answered, too; nobody waits for that.
    assert_eq!(answer(&mut world, ProxyAnswer::Refresh(Ok(None))), [""; 0]);
}

#[test]
fn clients_do_not_refresh_what_a_proxy_does() {
    let mut world = open(Some(10_010));
    assert_eq!(world.send(r#"{"id":2,"refresh":{"token":"t"}}"#), [CLOSE_3501]);
    let mut world = subscribed();
    assert_eq!(
        world.send(r#"{"id":3,"sub_refresh":{"channel":"asked:a","token":"t"}}"#),
        [CLOSE_3501, "leave asked:a hub"]
    );
    let mut world = open(None);
    let input = Input::ServerRefresh { expired: false, expire_at: Some(10_010), info: None };
    assert_eq!(world.give(input), [""; 0], "no push: the client has nothing to do");
    assert_eq!(world.pass(seconds(10)), ["ask refresh u: refresh"]);
}

#[test]
fn what_the_subscribe_proxy_says_is_done() {
    let verdict = || SubscribeVerdict {
        expire_at: None,
        options: SubscriptionOptions {
            info: Bytes::from_static(b"1"),
            overrides: Overrides { presence: Some(true), ..Overrides::default() },
            ..SubscriptionOptions::default()
        },
    };
    let past = SubscribeVerdict { expire_at: Some(10_000), ..SubscribeVerdict::default() };
    for (row, (result, expected)) in [
        (Ok(Some(SubscribeVerdict::default())), "join asked:a history".to_owned()),
        (Ok(Some(verdict())), "join asked:a presence(1) history".to_owned()),
        (Ok(Some(past)), error(2, 110)),
        (Ok(None), error(2, 103)),
        (no(), refused(2)),
        (gone(), "close 4500 gone".to_owned()),
        (down(), error(2, 100)),
    ]
    .into_iter()
    .enumerate()
    {
        let mut world = open(None);
        let asked = world.send(r#"{"id":2,"subscribe":{"channel":"asked:a","data":{"x":1}}}"#);
        assert_eq!(asked, [r#"ask app u: subscribe 2 asked:a {"x":1}"#], "row {row}");
        // The channel is reserved meanwhile.
        assert_eq!(world.send(r#"{"id":3,"subscribe":{"channel":"asked:a"}}"#), [error(3, 105)], "row {row}");
        let answered = answer(&mut world, ProxyAnswer::Subscribe { id: 2, channel: name("asked:a"), result });
        assert_eq!(answered, [expected], "row {row}");
        let again = ProxyAnswer::Subscribe { id: 2, channel: name("asked:a"), result: Ok(None) };
        assert_eq!(answer(&mut world, again), [""; 0], "row {row}, again");
    }
}

#[test]
fn a_token_or_a_users_own_channel_is_not_asked_about() {
    let mut world = open(None);
    let sent = world.send(r#"{"id":2,"subscribe":{"channel":"asked:a","token":"t"}}"#);
    assert_eq!(sent, ["verify Subscribe 2 asked:a t"]);
    assert_eq!(world.send(r#"{"id":3,"subscribe":{"channel":"$asked:b"}}"#), [error(3, 103)]);
}

#[test]
fn what_the_sub_refresh_proxy_says_is_done() {
    let later = SubRefreshVerdict { expire_at: Some(10_040), ..SubRefreshVerdict::default() };
    let past = SubRefreshVerdict { expire_at: Some(1), ..SubRefreshVerdict::default() };
    let expired = SubRefreshVerdict { expired: true, ..SubRefreshVerdict::default() };
    const ENDED: [&str; 2] = [
        "leave asked:a hub",
        r#"{"push":{"channel":"asked:a","unsubscribe":{"code":2501,"reason":"subscription expired"}}}"#,
    ];
    for (row, (result, ends, lives)) in [
        (Ok(Some(later)), false, Some(30)),
        (Ok(Some(SubRefreshVerdict::default())), false, None),
        (down(), false, Some(60)),
        (Ok(Some(past)), true, None),
        (Ok(Some(expired)), true, None),
        (Ok(None), true, None),
        (no(), true, None),
        (gone(), true, None),
    ]
    .into_iter()
    .enumerate()
    {
        let mut world = subscribed();
        assert_eq!(world.pass(seconds(10)), ["ask app u: sub_refresh asked:a"], "row {row}: without a grace");
        let answered = answer(&mut world, ProxyAnswer::SubRefresh { channel: name("asked:a"), result });
        assert_eq!(answered, if ends { &ENDED[..] } else { &[] }, "row {row}");
        match lives {
            Some(time) => {
                assert_eq!(world.pass(seconds(time - 1)), [""; 0], "row {row}");
                assert_eq!(world.pass(seconds(1)), ["ask app u: sub_refresh asked:a"], "row {row}");
            }
            None => assert_eq!(world.pass(seconds(1_000)), [""; 0], "row {row}"),
        }
    }
}

#[test]
fn a_subscription_of_the_server_that_may_not_go_on_costs_the_connection() {
    let mut world = open(None);
    let request = ServerSubscribe {
        channel: name("asked:s"),
        info: Bytes::new(),
        data: Bytes::new(),
        recover_since: None,
        expire_at: Some(10_010),
        overrides: Overrides::default(),
    };
    world.give(Input::ServerSubscribe(Box::new(request)));
    world.joined("asked:s", at("e", 1));
    assert_eq!(world.pass(seconds(10)), ["ask app u: sub_refresh asked:s"]);
    let said = answer(&mut world, ProxyAnswer::SubRefresh { channel: name("asked:s"), result: Ok(None) });
    assert_eq!(said, ["close 3006 subscription expired", "leave asked:s hub"]);
}

#[test]
fn an_answer_about_a_subscription_that_has_ended_means_nothing() {
    let mut world = subscribed();
    world.pass(seconds(10));
    world.send(r#"{"id":3,"unsubscribe":{"channel":"asked:a"}}"#);
    let late = ProxyAnswer::SubRefresh { channel: name("asked:a"), result: Ok(None) };
    assert_eq!(answer(&mut world, late.clone()), [""; 0]);
    world.send(r#"{"id":4,"subscribe":{"channel":"asked:a"}}"#);
    let result = Ok(Some(SubscribeVerdict::default()));
    answer(&mut world, ProxyAnswer::Subscribe { id: 4, channel: name("asked:a"), result });
    world.joined("asked:a", at("e", 1));
    assert_eq!(answer(&mut world, late), [""; 0], "nor about the one that came after it");
}

#[test]
fn what_the_publish_proxy_says_is_done() {
    let other = PublishVerdict { data: Some(Bytes::from_static(b"2")), ..PublishVerdict::default() };
    let options = PublishOptions { skip_history: true, version: 3, ..PublishOptions::default() };
    let tagged = PublishVerdict { data: None, options: options.clone() };
    let text = PublishVerdict { data: Some(Bytes::from_static(b"oops")), ..PublishVerdict::default() };
    for (row, (channel, result, expected)) in [
        ("asked:a", Ok(Some(PublishVerdict::default())), "publish 2 asked:a 1 by u(,)".to_owned()),
        ("asked:a", Ok(Some(other)), "publish 2 asked:a 2 by u(,)".to_owned()),
        ("asked:a", Ok(Some(tagged)), format!("publish 2 asked:a 1 by u(,) {options:?}")),
        ("asked:a", Ok(None), error(2, 103)),
        ("asked:a", no(), refused(2)),
        ("asked:a", gone(), "close 4500 gone".to_owned()),
        ("asked:a", down(), error(2, 100)),
        ("json:a", Ok(Some(text)), error(2, 100)),
    ]
    .into_iter()
    .enumerate()
    {
        let mut world = open(None);
        let asked = world.send(&format!(r#"{{"id":2,"publish":{{"channel":"{channel}","data":1}}}}"#));
        assert_eq!(asked, [format!("ask app u: publish 2 {channel} 1")], "row {row}");
        let data = Bytes::from_static(b"1");
        let judged = ProxyAnswer::Publish { id: 2, channel: name(channel), data, result };
        assert_eq!(answer(&mut world, judged.clone()), std::slice::from_ref(&expected), "row {row}");
        assert_eq!(answer(&mut world, judged), [""; 0], "row {row}, again");
        if expected.starts_with("publish") {
            assert_eq!(world.give(Input::Published { id: 2, result: Ok(()) }), [r#"{"id":2,"publish":{}}"#]);
        }
        assert_eq!(world.session.in_flight, 0, "row {row}");
        assert!(world.session.pending.is_none(), "row {row}");
    }
}

#[test]
fn publications_of_a_channel_stay_in_order_and_do_not_stop_pongs() {
    let mut world = open(None);
    let frame = r#"{"id":2,"publish":{"channel":"asked:a","data":1}}
{"id":3,"publish":{"channel":"asked:b","data":2}}
{"id":4,"publish":{"channel":"asked:a","data":3}}
{"id":5,"rpc":{"method":"m"}}"#;
    assert_eq!(world.send(frame), ["ask app u: publish 2 asked:a 1", "ask app u: publish 3 asked:b 2"]);
    assert!(!world.session.wants_commands());
    let judged = |id, channel: &str, data: &'static str| ProxyAnswer::Publish {
        id,
        channel: name(channel),
        data: Bytes::from_static(data.as_bytes()),
        result: Ok(Some(PublishVerdict::default())),
    };
    assert_eq!(answer(&mut world, judged(3, "asked:b", "2")), ["publish 3 asked:b 2 by u(,)"]);
    assert_eq!(
        answer(&mut world, judged(2, "asked:a", "1")),
        ["publish 2 asked:a 1 by u(,)", "ask app u: publish 4 asked:a 3", "ask app u: rpc 5 m "]
    );
    assert!(world.session.wants_commands());
}

#[test]
fn the_payload_is_looked_at_before_anybody_is_asked() {
    let mut world = open(None);
    assert_eq!(world.send(r#"{"id":2,"publish":{"channel":"asked:a"}}"#), [error(2, 107)]);
    assert_eq!(world.send(r#"{"id":3,"publish":{"channel":"nosuch:a","data":1}}"#), [error(3, 102)]);
}

#[test]
fn what_the_rpc_proxy_says_is_told() {
    for (row, (result, expected)) in [
        (Ok(Some(Bytes::from_static(b"{\"r\":1}"))), r#"{"id":2,"rpc":{"data":{"r":1}}}"#.to_owned()),
        (Ok(None), r#"{"id":2,"rpc":{}}"#.to_owned()),
        (no(), refused(2)),
        (gone(), "close 4500 gone".to_owned()),
        (down(), error(2, 100)),
    ]
    .into_iter()
    .enumerate()
    {
        let mut world = open(None);
        world.send(r#"{"id":2,"rpc":{"method":"m","data":[]}}"#);
        assert_eq!(answer(&mut world, ProxyAnswer::Rpc { id: 2, result }), [expected], "row {row}");
    }
    let mut world = open(None);
    world.settings.proxy.rpc = RpcRoutes::default();
    assert_eq!(world.send(r#"{"id":2,"rpc":{"method":"m"}}"#), [error(2, 108)]);
    world.settings.proxy.rpc = RpcRoutes { without_namespace: proxy(), ..RpcRoutes::default() };
    assert_eq!(
        world.send(r#"{"id":3,"rpc":{"method":"a:m"}}"#),
        [ClientError::MethodNotFound].map(|e| error(3, e.code()))
    );
}

#[test]
fn an_answer_that_comes_after_the_end_means_nothing() {
    let mut world = subscribed();
    world.send(r#"{"id":3,"publish":{"channel":"asked:a","data":1}}"#);
    world.send(r#"{"id":4,"subscribe":{"channel":"asked:b"}}"#);
    world.give(Input::Gone);
    assert!(world.session.is_finished());
    let data = Bytes::from_static(b"1");
    for late in [
        ProxyAnswer::Connect(Ok(Some(verdict("u")))),
        ProxyAnswer::Refresh(Ok(None)),
        ProxyAnswer::Subscribe { id: 4, channel: name("asked:b"), result: Ok(Some(SubscribeVerdict::default())) },
        ProxyAnswer::SubRefresh { channel: name("asked:a"), result: Ok(None) },
        ProxyAnswer::Publish { id: 3, channel: name("asked:a"), data, result: Ok(Some(PublishVerdict::default())) },
        ProxyAnswer::Rpc { id: 5, result: Ok(None) },
    ] {
        assert_eq!(answer(&mut world, late), [""; 0]);
    }
    assert_eq!(world.session.next_deadline(), None);
}
