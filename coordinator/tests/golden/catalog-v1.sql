BEGIN TRANSACTION;
CREATE TABLE instances(id text primary key, name text not null unique, identity text not null unique, body text not null) strict;
INSERT INTO "instances" VALUES('0000000000000000000000000000shop','shop','postgres://h:5432/shop','{"id":"0000000000000000000000000000shop","name":"shop","create_time":"1970-01-01T00:00:00Z","source_type":"postgres","source_uri":"postgres://u@h/shop","source_identity":"postgres://h:5432/shop","region":"","policy":"nightly","credential":{"password_env":"PGPASS"}}');
CREATE TABLE jobs(id text primary key, create_time integer not null, instance_id text not null, operation text not null,
    status text not null, request_id text unique, body text not null) strict;
INSERT INTO "jobs" VALUES('00000000000000000000000000000001',1000000,'i','backup','in-progress','slot:i:2026-11-22T02:00:00Z','{"id":"00000000000000000000000000000001","create_time":"1970-01-01T00:00:01Z","instance_id":"i","instance_name":"i","work":{"operation":"backup","rule":"Default"},"status":{"status":"in-progress"},"scheduled":false,"request_id":"slot:i:2026-11-22T02:00:00Z","warnings":[]}');
INSERT INTO "jobs" VALUES('00000000000000000000000000000003',3000000,'i','restore-database','failed',NULL,'{"id":"00000000000000000000000000000003","create_time":"1970-01-01T00:00:03Z","instance_id":"i","instance_name":"i","work":{"operation":"restore-database","point_id":"dbc1b4c900ffe48d575b5da5c638040125f65db0fe3e24494b76ea986457d986","target_uri":"postgres://u@h/","database":"shop2","no_owner":true,"credential":{"passfile":"/etc/pass"}},"status":{"status":"failed","end_time":"1970-01-01T00:00:00Z","problem":{"reason":"Interrupted","message":"m","fix":"f"}},"scheduled":false,"request_id":null,"warnings":[]}');
CREATE TABLE outbox(job_id text primary key, create_time integer not null, body text not null) strict;
INSERT INTO "outbox" VALUES('job-2',1795228281436003,'{"id":"dbc1b4c900ffe48d575b5da5c638040125f65db0fe3e24494b76ea986457d986","instance_id":"i","job_id":"00000000000000000000000000000002","time":"1970-01-01T00:00:20Z","rule":"Default","policy":"nightly","policy_version":1,"streams":[],"source_bytes":10,"stored_bytes":5}');
CREATE TABLE plugin_processes(job_id text primary key, pid integer not null, start_time integer not null) strict;
CREATE TABLE points(instance_id text not null, id text not null, time integer not null, stored_bytes integer not null,
    body text not null, primary key(instance_id, id)) strict;
INSERT INTO "points" VALUES('i','dbc1b4c900ffe48d575b5da5c638040125f65db0fe3e24494b76ea986457d986',20000000,5,'{"id":"dbc1b4c900ffe48d575b5da5c638040125f65db0fe3e24494b76ea986457d986","instance_id":"i","job_id":"00000000000000000000000000000002","time":"1970-01-01T00:00:20Z","rule":"Default","policy":"nightly","policy_version":1,"streams":[],"source_bytes":10,"stored_bytes":5}');
CREATE TABLE policies(name text not null, version integer not null, id text not null, create_time integer not null,
    document text not null, primary key(name, version)) strict;
INSERT INTO "policies" VALUES('nightly',1,'p',0,'name = "nightly"
');
CREATE TABLE slots(instance_id text primary key, slot integer not null) strict;
CREATE TABLE staged(job_id text primary key, snapshot_id text not null, sealed blob not null, prune_epoch integer not null,
    packs blob not null, time integer not null, created text not null) strict;
INSERT INTO "staged" VALUES('00000000000000000000000000000001','c9d0036bed6744bcdf692fc980d8717d7e5f5a4f4e8266b4a84982602fb1cd09',X'7365616C6564',3,X'CA978112CA1BBDCAFAC231B39A23DC4DA786EFF8147C4E72B9807785AFEE48BB01000000000000003E23E8160039594A33894F6564E1B1348BBD7A0088D42C4ACB73EEAED59C009D0000000000010000',1800000000000000,'{"job_id":"00000000000000000000000000000001","rule":"Default","policy":"nightly","policy_version":1,"streams":[],"source_bytes":10,"stored_bytes":5}');
CREATE INDEX jobs_by_time on jobs(create_time);
CREATE INDEX jobs_by_instance on jobs(instance_id, operation, create_time);
CREATE INDEX jobs_unfinished on jobs(status) where status in ('in-progress', 'cancelling');
CREATE INDEX points_by_time on points(instance_id, time, id);
COMMIT;
pragma user_version = 1;
