-- Asks for a verb as `kubectl bitnet` does; it is void for another revision or attempt than the one that was seen.
local verb = "@VERB@"
local status = obj.status or {}
local seen = status.candidate or status.stable or {}
if obj.metadata.annotations == nil then
  obj.metadata.annotations = {}
end
local id = "argocd-" .. os.date("!%Y-%m-%dT%XZ")
obj.metadata.annotations["rollouts.bitnet.dev/" .. verb] = '{"id": "' .. id .. '", "revision": "'
  .. (seen.revision or "") .. '", "attempt": ' .. tostring(status.attempt or 0) .. ', "by": "argocd"}'
return obj
