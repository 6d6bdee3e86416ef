-- Which verbs do something now.
local status = obj.status or {}
local phase = status.phase or ""
local known = status.candidate ~= nil or status.stable ~= nil
local trial = phase == "Progressing" or phase == "Paused" or phase == "Holding"
local actions = {}
actions["promote"] = {["disabled"] = not (known and trial)}
actions["promote-full"] = {["disabled"] = not (known and trial)}
actions["pause"] = {["disabled"] = not (known and phase == "Progressing")}
actions["resume"] = {["disabled"] = not (known and phase == "Paused")}
actions["abort"] = {["disabled"] = not (known and trial)}
actions["rollback"] = {["disabled"] = not known}
actions["retry"] = {["disabled"] = not (known and (phase == "RolledBack" or phase == "RollingBack" or phase == "Holding"))}
return actions
