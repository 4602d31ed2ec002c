// A partner's program against a running service: the worked example through a client that was generated from the contract.
// Its argument is a file that says where the service is and who exists; it exits with 0 only if everything holds.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import createClient, { type Client } from "openapi-fetch";
import type { paths } from "./build/contract.js";

interface World {
  url: string;
  gateway: { id: string; token: string };
  cameras: { id: string; token: string }[];
  service: { id: string; token: string };
}

const world: World = JSON.parse(readFileSync(process.argv[2] ?? "", "utf8"));

function as(token: string): Client<paths> {
  return createClient<paths>({ baseUrl: world.url, headers: { Authorization: `Bearer ${token}` } });
}

/** The data of a success; a refusal is an error that shows the problem. */
function good<T>(answer: { data?: T; error?: unknown; response: Response }): T {
  assert.equal(answer.error, undefined, `${answer.response.status}: ${JSON.stringify(answer.error)}`);
  assert.notEqual(answer.data, undefined);
  return answer.data as T;
}

const gateway = as(world.gateway.token);
const service = as(world.service.token);

// Two cameras whose ids are one apart, beyond what a JavaScript number can tell apart.
const [first, second] = world.cameras;
assert(first && second);
assert.notEqual(first.id, second.id);
assert.equal(Number(first.id), Number(second.id), "these ids prove nothing: numbers tell them apart");

let groupIP = "";
for (const [i, camera] of [first, second].entries()) {
  const answer = good(
    await as(camera.token).POST("/v1/registrations", {
      body: {
        type: "Device",
        id: camera.id,
        destination: false,
        privateIPv4: `172.168.0.${5 + i}`,
        publicIPv4: "71.230.36.162",
        IPv6: null,
        groupName: "groupcast1",
        groupIP: null,
      },
    }),
  );
  assert.equal(answer.state, 0);
  assert.equal(answer.TTLs, 3600);
  if (i > 0) assert.equal(answer.groupIP, groupIP, "both are sources of one group");
  groupIP = answer.groupIP;
}

// A body that contradicts the token: the neighbour's id, which a rounding client would send without noticing.
const neighbour = await as(first.token).POST("/v1/registrations", {
  body: { type: "Device", id: second.id, destination: false, privateIPv4: "172.168.0.5", groupName: "groupcast1" },
});
assert.equal(neighbour.response.status, 403);
assert.equal(neighbour.error?.type, "/problems/contradicts-token");

// The service finds the group and joins it.
const before = good(await gateway.GET("/v1/gateways/{gatewayId}/groups", { params: { path: { gatewayId: world.gateway.id } } }));
const groups = good(await service.GET("/v1/groups", { params: { query: { groupName: "groupcast1" } } }));
assert.equal(groups.groups.length, 1);
assert.equal(groups.groups[0]?.groupIP, groupIP);
const joined = good(
  await service.POST("/v1/registrations", {
    body: { type: "Service", id: world.service.id, destination: true, publicIPv4: "96.114.14.140", groupName: "groupcast1", groupIP },
  }),
);
assert.equal(joined.state, 1);
assert(joined.registrationId);

const group = good(await service.GET("/v1/groups/{groupId}", { params: { path: { groupId: groups.groups[0].groupId } } }));
assert.deepEqual(
  group.members.filter((m) => m.role === "source").map((m) => m.id),
  [first.id, second.id],
);
assert.deepEqual(
  group.members.filter((m) => m.role === "destination").map((m) => [m.type, m.id]),
  [["Service", world.service.id]],
);

// A second worker, and then one registration per page; the token is handed back as it came.
const worker = good(
  await service.POST("/v1/registrations", {
    body: {
      type: "Service",
      id: world.service.id,
      destination: true,
      instance: "worker-2",
      publicIPv4: "96.114.14.141",
      groupName: "groupcast1",
      groupIP,
    },
  }),
);
assert.equal(worker.state, 2);
assert(worker.registrationId);
const listed: string[] = [];
let pageToken: string | undefined;
do {
  const page = good(
    await service.GET("/v1/registrations", { params: { query: { pageSize: 1, ...(pageToken === undefined ? {} : { pageToken }) } } }),
  );
  assert(page.registrations.length <= 1);
  listed.push(...page.registrations.map((r) => r.registrationId));
  pageToken = page.nextPageToken;
} while (pageToken !== undefined);
assert.deepEqual(listed, [joined.registrationId, worker.registrationId]);

// The gateway hears of it: at once by an old cursor, and nothing new by the current one.
const path = { gatewayId: world.gateway.id };
const after = await gateway.GET("/v1/gateways/{gatewayId}/groups", {
  params: { path, query: { index: `${before.epoch}.${before.revision}`, wait: 20 } },
});
const information = good(after);
assert.equal(information.gatewayId, world.gateway.id);
assert(BigInt(information.revision) > BigInt(before.revision));
const destinations = information.groups[0]?.groupDestinations ?? [];
assert.deepEqual(
  destinations.map((d) => d.destinationIPv4),
  ["96.114.14.140", "96.114.14.141"],
);
assert.deepEqual(
  information.groups[0]?.groupSources.map((s) => s.sourceIPv4),
  ["172.168.0.5", "172.168.0.6"],
);
const etag = after.response.headers.get("ETag");
assert(etag);
const unchanged = await gateway.GET("/v1/gateways/{gatewayId}/groups", { params: { path, header: { "If-None-Match": etag } } });
assert.equal(unchanged.response.status, 304);

// A create whose answer got lost is sent again with its key: the same answer, and nothing is made twice.
const create = (key: string, url: string) =>
  service.POST("/v1/webhooks", { params: { header: { "Idempotency-Key": key } }, body: { url } });
const key = randomUUID();
const created = await create(key, "https://localhost/hook");
assert.equal(created.response.status, 201);
const again = await create(key, "https://localhost/hook");
assert.equal(again.response.status, 201);
assert.deepEqual(good(again), good(created));
assert(good(created).secret);
const reused = await create(key, "https://localhost/other");
assert.equal(reused.response.status, 422);
assert.equal(reused.error?.type, "/problems/idempotency-key-reused");
const another = good(await create(randomUUID(), "https://localhost/hook"));
assert.notEqual(another.webhook.webhookId, good(created).webhook.webhookId);
const webhooks = good(await service.GET("/v1/webhooks"));
assert.deepEqual(
  webhooks.webhooks.map((w) => w.webhookId).sort(),
  [good(created).webhook.webhookId, another.webhook.webhookId].sort(),
);

// Leaving, and what a refusal looks like.
const left = good(
  await service.DELETE("/v1/registrations/{registrationId}", { params: { path: { registrationId: worker.registrationId } } }),
);
assert.equal(left.state, 1);
const gone = await service.GET("/v1/registrations/{registrationId}", { params: { path: { registrationId: worker.registrationId } } });
assert.equal(gone.response.status, 404);
assert.equal(gone.error?.type, "/problems/not-found");
const page = await fetch(new URL(gone.error?.type ?? "", world.url));
assert.equal(page.status, 200, "the type of a problem is the address of its page");
const bad = await service.POST("/v1/registrations", {
  body: { type: "Service", id: "0", destination: true, groupName: "groupcast1" },
});
assert.equal(bad.response.status, 400);
assert.equal(bad.error?.type, "/problems/bad-request");
assert(bad.error?.errors?.some((e) => e.pointer === "/id"), JSON.stringify(bad.error));

console.log("typescript: the worked example holds");
