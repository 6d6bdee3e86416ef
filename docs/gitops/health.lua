-- Health of a ModelRollout in Argo CD. Only base and table functions are used: Argo CD offers no others by default.
local hs = {status = "Progressing", message = "the operator has not looked at this version yet"}
if obj.metadata.deletionTimestamp ~= nil then
  hs.message = "it is being deleted"
  return hs
end
local status = obj.status
if status == nil or status.observedGeneration ~= obj.metadata.generation then
  return hs
end
hs.message = status.message or status.phase or ""
local reason = {}
for _, condition in ipairs(status.conditions or {}) do
  if condition.status == "True" then
    reason[condition.type] = condition.reason
  end
end
if reason["Stalled"] == "Reported" then
  hs.status = "Suspended"
elseif reason["Stalled"] ~= nil or status.phase == "Degraded" then
  hs.status = "Degraded"
elseif reason["Ready"] ~= nil then
  hs.status = "Healthy"
elseif reason["Reconciling"] == nil and status.phase == "Paused" then
  hs.status = "Suspended"
end
return hs
