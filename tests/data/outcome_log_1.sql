-- A log as its first version wrote it; every later version must read it.
BEGIN TRANSACTION;
CREATE TABLE router_attempts (
            attempt_id TEXT PRIMARY KEY, decision_id TEXT NOT NULL, position INTEGER NOT NULL, model TEXT NOT NULL,
            kind TEXT NOT NULL, stage INTEGER, started_at DOUBLE PRECISION, latency_s DOUBLE PRECISION,
            cost_usd DOUBLE PRECISION, input_tokens DOUBLE PRECISION, output_tokens DOUBLE PRECISION,
            cached_tokens DOUBLE PRECISION, propensity DOUBLE PRECISION, accepted BOOLEAN, verdict_detail TEXT,
            verdict_cost_usd DOUBLE PRECISION, verdict_latency_s DOUBLE PRECISION, error_kind TEXT, error_message TEXT,
            cache_hit BOOLEAN NOT NULL, turns DOUBLE PRECISION, tool_calls DOUBLE PRECISION);
INSERT INTO "router_attempts" VALUES('d1-0','d1',0,'acme/small','answer',0,1700000000.0,0.5,0.0,0.0,0.0,0.0,0.9,NULL,NULL,NULL,NULL,'RateLimitedError','slow down',0,NULL,NULL);
INSERT INTO "router_attempts" VALUES('d1-1','d1',1,'acme/large','answer',0,1700000000.0,0.5,0.002,12.0,34.0,5.0,NULL,1,'',0.0005,0.1,NULL,NULL,0,NULL,NULL);
CREATE TABLE router_decisions (
            decision_id TEXT PRIMARY KEY, created_at DOUBLE PRECISION NOT NULL, source TEXT NOT NULL,
            router_version TEXT, policy TEXT, encoder TEXT, feature_set TEXT, session_id TEXT, task TEXT, segment TEXT,
            tags TEXT NOT NULL, prompt_hash TEXT, prompt TEXT, messages TEXT, limits TEXT NOT NULL,
            input_tokens DOUBLE PRECISION, features BLOB, embedding BLOB, candidates TEXT NOT NULL, model TEXT,
            plan TEXT NOT NULL, confidence DOUBLE PRECISION, plan_confidence DOUBLE PRECISION, escalated BOOLEAN,
            degraded BOOLEAN, reason_code TEXT, reason_text TEXT, propensity DOUBLE PRECISION,
            expected_cost_usd DOUBLE PRECISION, expected_baseline_usd DOUBLE PRECISION,
            baseline_cost_usd DOUBLE PRECISION, novelty DOUBLE PRECISION);
INSERT INTO "router_decisions" VALUES('d1',1700000000.0,'complete','0.1.0+abc','threshold','eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee','6fd57ef5560da0a1','s','math',NULL,'["team-a"]','sha256-1:0bd13bfaa6e7191f21633476aedcdcd36b64ad83aa34a06b4eda6d461f1ca108',NULL,NULL,'{}',12.0,X'000000000000803F0000004000004040',X'000000000000803F00000040','[{"model":"acme/small","p_success":0.8,"expected_cost_usd":0.001,"expected_latency_s":0.4,"excluded_by":null},{"model":"acme/large","p_success":0.95,"expected_cost_usd":0.02,"expected_latency_s":null,"excluded_by":"too slow"}]','acme/small','["acme/small","acme/large"]',0.8,0.95,0,0,'cheapest_likely','cheapest likely enough',0.9,0.001,0.02,0.03,0.3);
CREATE TABLE router_feedback (
            feedback_id TEXT PRIMARY KEY, decision_id TEXT NOT NULL, created_at DOUBLE PRECISION NOT NULL, model TEXT,
            score DOUBLE PRECISION, verdict TEXT, text TEXT, source TEXT);
INSERT INTO "router_feedback" VALUES('f1','d1',1700000100.0,NULL,0.5,NULL,'so so','user');
CREATE TABLE router_migrations (version INTEGER PRIMARY KEY, name TEXT, applied_at DOUBLE PRECISION);
INSERT INTO "router_migrations" VALUES(1,'tables',1.79550500961780047422e+09);
COMMIT;
