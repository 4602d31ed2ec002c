// What the compiler has to refuse. `@ts-expect-error` is itself an error if the next line compiles.
import type { components, paths } from "./build/contract.js";

type Request = components["schemas"]["RegistrationRequest"];
type Group = components["schemas"]["Group"];

const camera: Request = { type: "Device", id: "664123086043511412", destination: false, groupName: "groupcast1" };

// @ts-expect-error: a value that the enum doesn't have
export const wrongType: Request = { ...camera, type: "Camera" };
// @ts-expect-error: an id as a number would lose digits
export const numericId: Request = { ...camera, id: 664123086043511412 };
// @ts-expect-error: a member that the contract doesn't know
export const unknownMember: Request = { ...camera, groupname: "groupcast1" };
// @ts-expect-error: groupName is required
export const incomplete: Request = { type: "Device", id: "1", destination: false };
// @ts-expect-error: addresses of members are shown to nobody
export const address = (g: Group) => g.members[0]?.publicIPv4;
// @ts-expect-error: there is no such path
export type Unknown = paths["/v1/nothing"];

// What it has to accept: null where the contract allows it, and members left out.
export const nulls: Request = { ...camera, groupIP: null, IPv6: null, TTLs: null };
