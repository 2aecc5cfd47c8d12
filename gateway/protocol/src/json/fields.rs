//! The members of each message's JSON object, in the order in which they are written.
//!
//! That order is the one of the reference server and SDKs, in case somebody compares texts. Readers need no order.

use bytes::Bytes;
use serde::de::MapAccess;

use super::{ReadObject, WriteJson, WriteObject, read_field, skip_field};
use crate::EncodeError;
use crate::messages::{
    ClientInfo, Connect, ConnectRequest, ConnectResult, Disconnect, Error, HistoryRequest, HistoryResult, Join, Leave,
    Message, PingRequest, PingResult, PresenceRequest, PresenceResult, PresenceStatsRequest, PresenceStatsResult,
    Publication, PublishRequest, PublishResult, Refresh, RefreshRequest, RefreshResult, RpcRequest, RpcResult,
    SendRequest, StreamPosition, SubRefreshRequest, SubRefreshResult, Subscribe, SubscribeRequest, SubscribeResult,
    Unsubscribe, UnsubscribeRequest, UnsubscribeResult,
};

/// Implements [`ReadObject`] and [`WriteObject`] from the list of members: their JSON name, the field, and `always` if absence is written too.
macro_rules! object {
    ($message:ident {}) => {
        impl ReadObject for $message {
            fn read_member<'de, A: MapAccess<'de>>(
                &mut self,
                _name: &str,
                _frame: &Bytes,
                members: &mut A,
            ) -> Result<(), A::Error> {
                skip_field(members)
            }
        }

        impl WriteObject for $message {
            fn write_members(&self, _out: &mut Vec<u8>) -> Result<(), EncodeError> {
                Ok(())
            }
        }
    };
    ($message:ident { $($name:literal => $field:ident $(($always:ident))?),+ $(,)? }) => {
        impl ReadObject for $message {
            fn read_member<'de, A: MapAccess<'de>>(
                &mut self,
                name: &str,
                frame: &Bytes,
                members: &mut A,
            ) -> Result<(), A::Error> {
                match name {
                    $($name => self.$field = read_field(frame, members)?,)+
                    _ => skip_field(members)?,
                }
                Ok(())
            }
        }

        impl WriteObject for $message {
            fn write_members(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
                $(
                    if object!(@written self.$field $(, $always)?) {
                        out.extend_from_slice(concat!("\"", $name, "\":").as_bytes());
                        self.$field.write(out)?;
                        out.push(b',');
                    }
                )+
                Ok(())
            }
        }
    };
    (@written $field:expr, always) => { true };
    (@written $field:expr) => { !WriteJson::is_absent(&$field) };
}

object!(ConnectRequest {
    "token" => token,
    "data" => data,
    "subs" => subs,
    "name" => name,
    "version" => version,
    "headers" => headers,
});
object!(SubscribeRequest {
    "channel" => channel,
    "token" => token,
    "flag" => flag,
    "recover" => recover,
    "epoch" => epoch,
    "offset" => offset,
    "data" => data,
    "positioned" => positioned,
    "recoverable" => recoverable,
    "join_leave" => join_leave,
    "delta" => delta,
    "type" => r#type,
});
object!(UnsubscribeRequest { "channel" => channel });
object!(PublishRequest { "channel" => channel, "data" => data, "type" => r#type });
object!(PresenceRequest { "channel" => channel });
object!(PresenceStatsRequest { "channel" => channel });
object!(HistoryRequest { "channel" => channel, "limit" => limit, "since" => since, "reverse" => reverse });
object!(PingRequest {});
object!(SendRequest { "data" => data });
object!(RpcRequest { "method" => method, "data" => data });
object!(RefreshRequest { "token" => token });
object!(SubRefreshRequest { "channel" => channel, "token" => token, "type" => r#type });

object!(ConnectResult {
    "client" => client,
    "version" => version,
    "expires" => expires,
    "ttl" => ttl,
    "data" => data,
    "ping" => ping,
    "pong" => pong,
    "session" => session,
    "node" => node,
    "time" => time,
    "subs" => subs,
});
object!(SubscribeResult {
    "expires" => expires,
    "ttl" => ttl,
    "recoverable" => recoverable,
    "epoch" => epoch,
    "publications" => publications,
    "recovered" => recovered,
    "offset" => offset,
    "positioned" => positioned,
    "data" => data,
    "was_recovering" => was_recovering,
    "delta" => delta,
});
object!(UnsubscribeResult {});
object!(PublishResult {});
object!(PresenceResult { "presence" => presence (always) });
object!(PresenceStatsResult { "num_clients" => num_clients (always), "num_users" => num_users (always) });
object!(HistoryResult {
    "publications" => publications (always),
    "epoch" => epoch (always),
    "offset" => offset (always),
});
object!(PingResult {});
object!(RpcResult { "data" => data });
object!(RefreshResult { "client" => client, "version" => version, "expires" => expires, "ttl" => ttl });
object!(SubRefreshResult { "expires" => expires, "ttl" => ttl });

object!(Error { "code" => code, "message" => message, "temporary" => temporary });
object!(StreamPosition { "offset" => offset, "epoch" => epoch });
object!(ClientInfo {
    "user" => user (always),
    "client" => client (always),
    "conn_info" => conn_info,
    "chan_info" => chan_info,
});
object!(Publication {
    "data" => data,
    "info" => info,
    "offset" => offset,
    "tags" => tags,
    "delta" => delta,
});

object!(Join { "info" => info });
object!(Leave { "info" => info });
object!(Unsubscribe { "code" => code, "reason" => reason });
object!(Message { "data" => data });
object!(Subscribe {
    "recoverable" => recoverable,
    "epoch" => epoch,
    "offset" => offset,
    "positioned" => positioned,
    "data" => data,
});
object!(Connect {
    "client" => client,
    "version" => version,
    "data" => data,
    "subs" => subs,
    "expires" => expires,
    "ttl" => ttl,
    "ping" => ping,
    "pong" => pong,
    "session" => session,
    "node" => node,
    "time" => time,
});
object!(Disconnect { "code" => code, "reason" => reason });
object!(Refresh { "expires" => expires, "ttl" => ttl });
